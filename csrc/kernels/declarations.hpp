// Every kernel, declared in the namespace of the set of instructions that a file is compiled for.
#pragma once

#include "kernels.hpp"

namespace quire::QUIRE_ISA {

// out [rows, last], x [rows, last]: out = x, both contiguous, of one dtype.
void copy(const Tensor* operands, const double* numbers, Worker& worker);

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
// out [*rows, width], x, y or none; y: x + y, x * y, of tensors (floats, i32, i64) or with the number.
void add(const Tensor* operands, const double* numbers, Worker& worker);
void mul(const Tensor* operands, const double* numbers, Worker& worker);

// out [num_tokens, num_heads, head_dim], x, positions [num_tokens] i32 or i64, table [max_position, rotary_dim] f32: rope.
void rope(const Tensor* operands, const double* numbers, Worker& worker);
// kv_cache [2, num_blocks, num_kv_heads, block_size, head_dim] of the dtype of key, i8 or f8e4m3, key [num_tokens,
// num_kv_heads, head_dim], value, slot_mapping [num_tokens] i32 or i64, kv_scales [2, num_kv_heads] f32 or none: append_kv.
void append_kv(const Tensor* operands, const double* numbers, Worker& worker);
// out [num_tokens, num_heads, head_dim], kv_cache, query, key, value, positions, table, slot_mapping, kv_scales or none:
// rope_append_kv. Scratch: 4 * head_dim.
void rope_append_kv(const Tensor* operands, const double* numbers, Worker& worker);
// out [num_ids, *sizes], table [num_rows, *sizes], ids [num_ids] i32 or i64, each in [0, num_rows): embedding, and
// index_select along dimension 0. Rows are contiguous; any dtype.
void gather_rows(const Tensor* operands, const double* numbers, Worker& worker);

// out [num_tokens, num_heads, head_dim], query, kv_cache [2, num_blocks, num_kv_heads, block_size, head_dim] of the dtype
// of query, i8 or f8e4m3, block_table [num_seqs, max_blocks], seq_lens [num_seqs], query_start_loc [num_seqs + 1], each
// i32 or i64, kv_scales [2, num_kv_heads] f32 or none; scale > 0, window or 0, soft_cap or 0: attention. Any strides but
// in the last dimension, where it is contiguous. Rows past query_start_loc's last are left as they are.
void attention(const Tensor* operands, const double* numbers, Worker& worker);
#ifdef QUIRE_ISA_IS_amx
// The same for queries in bf16; `attention` calls it.
void attention_tiles(const Tensor* operands, const double* numbers, Worker& worker);
#endif

}  // namespace quire::QUIRE_ISA
