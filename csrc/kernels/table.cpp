#include "kernels/declarations.hpp"

#define QUIRE_TEXT_(x) #x
#define QUIRE_TEXT(x) QUIRE_TEXT_(x)

namespace quire::QUIRE_ISA {

static constexpr KernelEntry kEntries[] = {
    {"copy", copy, 2, 0},
    {"pack_linear", pack_linear, 2, 0},
    {"rms_norm", rms_norm, 3, 1},
    {"add_rms_norm", add_rms_norm, 5, 1},
    {"rms_norm_quant", rms_norm_quant, 4, 1},
    {"add_rms_norm_quant", add_rms_norm_quant, 6, 1},
    {"layer_norm", layer_norm, 4, 1},
    {"quantize_rows", quantize_rows, 3, 0},
    {"silu_mul", silu_mul, 2, 0},
    {"silu_mul_quant", silu_mul_quant, 3, 0},
    {"silu", silu, 2, 0},
    {"relu", relu, 2, 0},
    {"gelu", gelu, 2, 1},
    {"add", add, 3, 0},
    {"mul", mul, 3, 0},
    {"add_number", add_number, 2, 1},
    {"mul_number", mul_number, 2, 1},
    {"rope", rope, 4, 0},
    {"append_kv", append_kv, 5, 0},
    {"rope_append_kv", rope_append_kv, 9, 0},
    {"gather_rows", gather_rows, 3, 0},
    {"linear", linear, 6, 0},
    {"attention", attention, 7, 3},
    {"linear_w8a8", linear_w8a8, 7, 0},
    {"correct_w8a8", correct_w8a8, 2, 0},
    {"choose_tokens", choose_tokens, 10, 0},
    {"token_logprobs", token_logprobs, 6, 0},
};

extern const KernelTable kernels = {QUIRE_TEXT(QUIRE_ISA), kEntries, sizeof(kEntries) / sizeof(kEntries[0])};

}  // namespace quire::QUIRE_ISA
