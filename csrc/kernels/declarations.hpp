// Every kernel, declared in the namespace of the set of instructions that a file is compiled for.
#pragma once

#include "kernels.hpp"

namespace quire::QUIRE_ISA {

// out [rows, last], x [rows, last]: out = x, of one dtype; elements of a row lie side by side.
void copy(const Tensor* operands, const double* numbers, Worker& worker);

// packed [panels, steps, 2, 16, 64 bytes] (see panels.hpp), weight [columns, depth] f32, bf16 or i8, or
// [columns, depth / 2] u8 of two int4 a byte; rows of weight may be strided.
void pack_linear(const Tensor* operands, const double* numbers, Worker& worker);

// Of rows: operands have any strides but in the last dimension, where they are contiguous; [*rows] means any number of
// leading dimensions, 0 strides included. Floats are of one dtype. A row's bits depend on that row alone.

// out [*rows, width], x, weight [width]; eps: rms_norm.
void rms_norm(const Tensor* operands, const double* numbers, Worker& worker);
// out [*rows, width], total, x, residual, weight [width]; eps: add_rms_norm. `total` may be x or residual.
void add_rms_norm(const Tensor* operands, const double* numbers, Worker& worker);
// out [*rows, width] i8 or f8e4m3, scales [*rows, 1] f32, x, weight [width]; eps: rms_norm_quant. Scratch: 4 * width.
void rms_norm_quant(const Tensor* operands, const double* numbers, Worker& worker);
// out, scales, total, x, residual, weight; eps: add_rms_norm_quant. Scratch: 4 * width.
void add_rms_norm_quant(const Tensor* operands, const double* numbers, Worker& worker);
// out [*rows, width], x, weight [width], bias [width] or none; eps: layer_norm.
void layer_norm(const Tensor* operands, const double* numbers, Worker& worker);
// out [*rows, width] i8 or f8e4m3, scales [*rows, 1] f32, x: quantize_rows. Scratch: 4 * width.
void quantize_rows(const Tensor* operands, const double* numbers, Worker& worker);

// out [*rows, width], x [*rows, 2 * width]: silu_mul.
void silu_mul(const Tensor* operands, const double* numbers, Worker& worker);
// out [*rows, width] i8 or f8e4m3, scales [*rows, 1] f32, x [*rows, 2 * width]: silu_mul_quant. Scratch: 4 * width.
void silu_mul_quant(const Tensor* operands, const double* numbers, Worker& worker);
// out [*rows, width], x: silu; relu; and gelu, whose number is 1 for the tanh form, 0 for erf.
void silu(const Tensor* operands, const double* numbers, Worker& worker);
void relu(const Tensor* operands, const double* numbers, Worker& worker);
void gelu(const Tensor* operands, const double* numbers, Worker& worker);
// out [*rows, width], x, y: x + y, x * y, of floats, i32 or i64, which broadcast in all dimensions but the last.
void add(const Tensor* operands, const double* numbers, Worker& worker);
void mul(const Tensor* operands, const double* numbers, Worker& worker);
// out [*rows, width], x; number: x + number, x * number.
void add_number(const Tensor* operands, const double* numbers, Worker& worker);
void mul_number(const Tensor* operands, const double* numbers, Worker& worker);

// out [num_tokens, num_heads, head_dim], x, positions [num_tokens] i32 or i64, table [max_position, rotary_dim] f32:
// rope.
void rope(const Tensor* operands, const double* numbers, Worker& worker);
// kv_cache [2, num_blocks, num_kv_heads, block_size, head_dim] of the dtype of key, i8 or f8e4m3, key [num_tokens,
// num_kv_heads, head_dim], value, slot_mapping [num_tokens] i32 or i64, kv_scales [2, num_kv_heads] f32 or none:
// append_kv.
void append_kv(const Tensor* operands, const double* numbers, Worker& worker);
// out [num_tokens, num_heads, head_dim], kv_cache, query, key, value, positions, table, slot_mapping, kv_scales or
// none: rope_append_kv. Scratch: 4 * head_dim.
void rope_append_kv(const Tensor* operands, const double* numbers, Worker& worker);
// out [num_ids, *sizes], table [num_rows, *sizes], ids [num_ids] i32 or i64, each in [0, num_rows): embedding, and
// index_select along dimension 0. Rows are contiguous; any dtype.
void gather_rows(const Tensor* operands, const double* numbers, Worker& worker);
// packed [panels, steps, 2, 16, 16, words of 4 bytes] (see panels.hpp), weight [columns, depth] f32, bf16 or i8, or
// [columns, depth / 2] u8 of two int4 a byte; rows of weight may be strided.
void pack_linear(const Tensor* operands, const double* numbers, Worker& worker);

// out [*rows, columns] of the dtype of x, x [*rows, depth] f32, bf16 or f16, weight packed by pack_linear, scales,
// zero_points, bias [columns] of x's dtype or absent: out = x (weight scales)^T + bias, summed in float32 and rounded
// once. Rows of x and out may be strided. scales of weights of f32, bf16 and i8 are [columns] f32 or absent; those of
// int4 are [panels, groups, 32] of any float dtype, its zero_points [panels, groups, 32] u8, and its group a multiple
// of 32.
// Only x of f32 and f16 goes with a weight of f32.
void linear(const Tensor* operands, const double* numbers, Worker& worker);

// out [num_tokens, num_heads, head_dim], query, kv_cache [2, num_blocks, num_kv_heads, block_size, head_dim] of the dtype
// of query, i8 or f8e4m3, block_table [num_seqs, max_blocks], seq_lens [num_seqs], query_start_loc [num_seqs + 1], each
// i32 or i64, kv_scales [2, num_kv_heads] f32 or none; scale > 0, window or 0, soft_cap or 0: attention. Any strides but
// in the last dimension, where it is contiguous. Rows past query_start_loc's last are left as they are.
void attention(const Tensor* operands, const double* numbers, Worker& worker);
#ifdef QUIRE_ISA_IS_amx
// The same for queries in bf16; `attention` calls it.
void attention_tiles(const Tensor* operands, const double* numbers, Worker& worker);
#endif

// out [*rows, out_features], x [*rows, in_features] i8, rows equally far apart, x_scales [*rows, 1] f32, panels of
// pack_linear, scales [out_features] f32, corrections of correct_w8a8, bias [out_features] of the dtype of out or none.
// Scratch: see scratch_bytes in src/quire/ops/native/w8a8.py.
void linear_w8a8(const Tensor* operands, const double* numbers, Worker& worker);
// corrections [num_panels * 32] i32: -128 * the sum of each column, panels [num_panels, num_steps * 2048] i8.
void correct_w8a8(const Tensor* operands, const double* numbers, Worker& worker);
void linear_w8a8_tiles(const Tensor* operands, Worker& worker);  // for many rows, on AMX alone

// ids [rows] i64, largest [rows] f32, logits [rows, vocab_size], reals [3, rows] i64: the bits of doubles, temperature
// (0: the most likely), top_p and min_p; integers [2, rows] i64: top_k (0: all) and random bits; and edits, or none:
// starts [rows + 1] i64, ids [num_edits] i64, kinds [num_edits] u8: keep (those of a row come first and drop all
// others), ban, add, penalize; values [num_edits] f32: what is added, how often a token was generated; penalties
// [rows, 3] f32: repetition, frequency, presence. A row's id is -1 if its largest logit is not finite. Scratch: 36 *
// vocab_size.
void choose_tokens(const Tensor* operands, const double* numbers, Worker& worker);
// ids [rows, 1 + most] i64, logprobs f32, ranks i64, logits [rows, vocab_size], tokens [rows] i64, nums [rows] i64,
// each at most `most`: of each row a token, then the nums most likely ones. Scratch: 36 * vocab_size.
void token_logprobs(const Tensor* operands, const double* numbers, Worker& worker);

}  // namespace quire::QUIRE_ISA
