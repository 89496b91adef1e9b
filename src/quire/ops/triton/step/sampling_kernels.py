"""The kernels that sample. A program takes a block of a row's vocabulary, or puts together what a row's blocks say.

All sums are of whole numbers: the softmax's of exponentials in units of 2**-40, and from then on those of weights, as
in `quire.sampling.choice`. So no sum depends on how a kernel is compiled, and several kernels find the same one.
"""

from __future__ import annotations

import triton
import triton.language as tl

FIELDS = (
    "temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
    "top_k", "seed", "position", "edits",
)  # fmt: skip
"""The 64-bit words of a row's parameters: floats in float64, then integers; temperature 0 is greedy, top_k 0 keeps all,
`position` counts the tokens generated so far, `edits` are those of `ALLOWED`, `LISTED` and `PENALTIES` together."""
ALLOWED, LISTED, PENALTIES = 1, 2, 4
"""What changes a row's logits: a mask of allowed ids, listed values, counts."""
OK, NOT_FINITE, NO_TOKEN_LEFT = 0, 1, 2
"""What a row's status says."""
SEEN_IN_PROMPT = -(1 << 15)
"""The bit beside a token's count that says that the prompt has it."""
BINS = 128
"""Of a histogram of probabilities: a quarter of a power of two each, from 2**-32 to 1; the first has all below."""

_NUM_FIELDS, _BINS_ = tl.constexpr(len(FIELDS)), tl.constexpr(BINS)
_TOP_K, _SEED, _POSITION, _EDITS = (tl.constexpr(FIELDS.index(n)) for n in ("top_k", "seed", "position", "edits"))
_TEMPERATURE, _TOP_P, _MIN_P, _REPETITION, _FREQUENCY, _PRESENCE = (tl.constexpr(i) for i in range(6))
_ALLOWED, _PENALTIES = tl.constexpr(ALLOWED), tl.constexpr(PENALTIES)
_OK, _NOT_FINITE, _NO_TOKEN_LEFT = tl.constexpr(OK), tl.constexpr(NOT_FINITE), tl.constexpr(NO_TOKEN_LEFT)
_ONE = tl.constexpr(2.0**60)  # probability 1
_LAST_ID = tl.constexpr((1 << 31) - 1)
_NAN, _INFINITY, _MINUS_INFINITY = (tl.constexpr(n) for n in (0x7FFFFFFF, 0x7F800000, -0x7F800001))  # of `_ordered`
_LOWEST = tl.constexpr(-(1 << 63))
_FIRST_BIN, _BIN_SHIFT = tl.constexpr((127 - 32) << 23), tl.constexpr(21)  # bits of 2**-32, and of a quarter


@triton.jit
def _integer(parameters, slot, FIELD: tl.constexpr):
    return tl.load(parameters + slot.to(tl.int64) * _NUM_FIELDS + FIELD)


@triton.jit
def _number(parameters, slot, FIELD: tl.constexpr):
    return _integer(parameters, slot, FIELD).to(tl.float64, bitcast=True)


@triton.jit
def _ordered(x):
    """Return int32 in the order of float32 `x`: NaN above all, and both zeros the same."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(x != x, _NAN, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def _value(key):
    """Return the float32 that `_ordered` made a key of."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _exp(x, largest, temperature):
    """Return `exp((x - largest) / temperature)`; the largest is subtracted first, so that nothing overflows."""
    apart = x - largest
    return tl.exp(tl.div_rn(apart, tl.broadcast_to(temperature, apart.shape)))


@triton.jit
def _load(logits, edited, edits, row, row_stride, columns, VOCAB_SIZE: tl.constexpr):
    """Return a block of a row's logits, float32, after its edits if there are any; -inf beyond the vocabulary."""
    kept = columns < VOCAB_SIZE
    x = tl.load(logits + row.to(tl.int64) * row_stride + columns, kept, other=float("-inf")).to(tl.float32)
    if edited is not None and edits != 0:
        x = tl.load(edited + row.to(tl.int64) * VOCAB_SIZE + columns, kept, other=float("-inf"))
    return x


@triton.jit
def _whole(x):
    """Return float32 in units of 2**-40, int64: sums of them do not depend on how a compiler lays them out."""
    return (x * 2.0**40).to(tl.int64)


@triton.jit
def _softmax_of(best, sums, row, temperature, BLOCKS: tl.constexpr, PADDED: tl.constexpr):
    """Return what all blocks of a row say together: its largest logit, and the denominator of its softmax."""
    index = tl.arange(0, PADDED)
    keys = tl.load(best + row * BLOCKS + index, index < BLOCKS, other=_MINUS_INFINITY << 32) >> 32
    values = _value(keys.to(tl.int32))
    largest = _value(tl.max(keys, 0).to(tl.int32))
    parts = tl.load(sums + row * BLOCKS + index, index < BLOCKS, other=0).to(tl.float32)
    total = tl.sum((parts * _exp(values, largest, temperature)).to(tl.int64), 0)
    return largest, total.to(tl.float32) * 2.0**-40


@triton.jit
def _probability(x, largest, temperature, denominator):
    e = _exp(x, largest, temperature)
    return tl.div_rn(e, tl.broadcast_to(denominator, e.shape))


@triton.jit
def _weight(probability):
    """Return probabilities in units of 2**-60, rounded down, int64."""
    return (probability * _ONE).to(tl.int64)


@triton.jit
def _share(share, total):
    """Return `share * total`, rounded to float64 and then up, int64."""
    return tl.ceil(share * total.to(tl.float64)).to(tl.int64)


@triton.jit
def _is_filtered(parameters, slot, VOCAB_SIZE: tl.constexpr):
    top_k = _integer(parameters, slot, _TOP_K)
    return ((top_k > 0) & (top_k < VOCAB_SIZE)) | (_number(parameters, slot, _TOP_P) < 1.0)


@triton.jit
def _mix(bits):
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB
    return bits ^ (bits >> 31)


@triton.jit
def _random_bits(seed, position):
    """Return 64 random bits, uint64; see `quire.sampling.random_bits`."""
    start = _mix(seed.to(tl.uint64) + 0x9E3779B97F4A7C15)
    return _mix(start + (position.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15)


@triton.jit
def allow_kernel(logits, edited, slots, parameters, masks, row_stride, VOCAB_SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Copy the logits of rows that have edits, in float32, without the tokens that are not allowed."""
    row, columns = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slot, kept = tl.load(slots + row), columns < VOCAB_SIZE
    if slot < 0:
        return
    edits = _integer(parameters, slot, _EDITS)
    if edits == 0:
        return
    x = tl.load(logits + row.to(tl.int64) * row_stride + columns, kept).to(tl.float32)
    if masks is not None and (edits & _ALLOWED) != 0:
        place = masks + slot.to(tl.int64) * ((VOCAB_SIZE + 31) // 32) + columns // 32
        words = tl.load(place, kept, other=0)
        x = tl.where((words >> (columns % 32)) & 1 != 0, x, float("-inf"))
    tl.store(edited + row.to(tl.int64) * VOCAB_SIZE + columns, x, kept)


@triton.jit(do_not_specialize=["num_edits"])
def list_kernel(edited, rows, token_ids, values, num_edits, VOCAB_SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Add listed values to single logits; a token that is banned and biased is -inf in either order."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + index, index < num_edits, other=-1)
    token_id = tl.load(token_ids + index, index < num_edits, other=0)
    value = tl.load(values + index, index < num_edits, other=0.0)
    tl.atomic_add(edited + row.to(tl.int64) * VOCAB_SIZE + token_id, value, row >= 0)


@triton.jit
def _penalized(x, counted, parameters, slot):
    """Return logits after the penalties; see `quire.sampling.edits`."""
    repetition = _number(parameters, slot, _REPETITION).to(tl.float32)
    frequency = _number(parameters, slot, _FREQUENCY).to(tl.float32)
    presence = _number(parameters, slot, _PRESENCE).to(tl.float32)
    count = (counted & 0x7FFF).to(tl.float32)
    less = tl.where(x > 0, tl.div_rn(x, tl.broadcast_to(repetition, x.shape)), x * repetition)
    less = less - frequency * count
    less = less - presence * (count > 0).to(tl.float32)
    return tl.where(counted != 0, less, x)


@triton.jit
def summarize_kernel(
    logits, edited, slots, parameters, counts, raw_best, raw_sums, best, sums, row_stride,
    IS_RANDOM: tl.constexpr, HAS_LOGPROBS: tl.constexpr, VOCAB_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write of each block the largest logit, the lowest id that has it, and the sum of exponentials beside it."""
    row, block = tl.program_id(0), tl.program_id(1)
    columns, here = block * BLOCK + tl.arange(0, BLOCK), row * tl.num_programs(1) + block
    slot, kept = tl.load(slots + row), columns < VOCAB_SIZE
    if slot < 0:
        return
    x = _load(logits, None, 0, row, row_stride, columns, VOCAB_SIZE)
    keys = _ordered(x)
    largest = tl.max(keys, 0)
    tl.store(raw_best + here, largest.to(tl.int64) << 32)
    if HAS_LOGPROBS:
        beside = tl.where(largest == _MINUS_INFINITY, 0.0, _value(largest))
        tl.store(raw_sums + here, tl.sum(_whole(tl.exp(x - beside)), 0))
    if edited is not None:
        edits = _integer(parameters, slot, _EDITS)
        if edits != 0:
            place = edited + row.to(tl.int64) * VOCAB_SIZE + columns
            x = tl.load(place, kept, other=float("-inf"))
            if counts is not None and (edits & _PENALTIES) != 0:
                counted = tl.load(counts + slot.to(tl.int64) * VOCAB_SIZE + columns, kept, other=0)
                x = _penalized(x, counted, parameters, slot)
                tl.store(place, x, kept)
            keys = _ordered(x)
            largest = tl.max(keys, 0)
    first = tl.min(tl.where(keys == largest, columns, _LAST_ID), 0)
    tl.store(best + here, (largest.to(tl.int64) << 32) | (first ^ _LAST_ID).to(tl.int64))
    if IS_RANDOM:
        temperature = _number(parameters, slot, _TEMPERATURE).to(tl.float32)
        if temperature > 0:
            beside = tl.where(largest == _MINUS_INFINITY, 0.0, _value(largest))
            tl.store(sums + here, tl.sum(_whole(_exp(x, beside, temperature)), 0))


@triton.jit
def weigh_kernel(
    logits, edited, slots, parameters, best, sums, weights, thresholds, bins, row_stride,
    IS_FILTERED: tl.constexpr, IS_FINAL: tl.constexpr, VOCAB_SIZE: tl.constexpr, BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Write the weight of each block: first of what min_p keeps, with a histogram; at last of what all filters keep."""
    row, block = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    if slot < 0:
        return
    temperature = _number(parameters, slot, _TEMPERATURE).to(tl.float32)
    is_filtered = IS_FILTERED and _is_filtered(parameters, slot, VOCAB_SIZE)
    if temperature == 0 or (IS_FINAL and not is_filtered):
        return
    largest, denominator = _softmax_of(best, sums, row, temperature, BLOCKS, PADDED)
    if IS_FINAL:
        threshold = tl.load(thresholds + row)
    else:
        most = _weight(_probability(largest, largest, temperature, denominator))
        threshold = _share(_number(parameters, slot, _MIN_P), most)
        if block == 0:
            tl.store(thresholds + row, threshold)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    x = _load(logits, edited, _integer(parameters, slot, _EDITS), row, row_stride, columns, VOCAB_SIZE)
    probability = _probability(x, largest, temperature, denominator)
    weight = _weight(probability)
    weight = tl.where(weight >= threshold, weight, 0)
    tl.store(weights + row * BLOCKS + block, tl.sum(weight, 0))
    if IS_FILTERED and not IS_FINAL and is_filtered:
        index = (probability.to(tl.int32, bitcast=True) - _FIRST_BIN) >> _BIN_SHIFT
        index = tl.where(weight > 0, tl.minimum(tl.maximum(index, 0), _BINS_ - 1), 0)
        counted, bin_ids = tl.histogram(index, _BINS_), tl.arange(0, _BINS_)
        tl.atomic_add(bins + row * (_BINS_ + 1) + bin_ids, counted, counted > 0)


@triton.jit
def _lowest_bin(parameters, slot, bins, weights, row, VOCAB_SIZE: tl.constexpr, BLOCKS: tl.constexpr,
                PADDED: tl.constexpr):  # fmt: skip
    """Return a bin below which no threshold of top_k and top_p can be."""
    bin_ids = tl.arange(0, _BINS_)
    counted = tl.load(bins + row * (_BINS_ + 1) + bin_ids).to(tl.int64)
    top_k = _integer(parameters, slot, _TOP_K)
    if (top_k > 0) & (top_k < VOCAB_SIZE):
        from_here_on = tl.sum(counted, 0) - tl.cumsum(counted, 0) + counted
        found = tl.max(tl.where(from_here_on >= top_k, bin_ids, 0), 0)
    else:
        index = tl.arange(0, PADDED)
        total = tl.sum(tl.load(weights + row * BLOCKS + index, index < BLOCKS, other=0), 0)
        may_drop = (total - _share(_number(parameters, slot, _TOP_P), total)) >> 20
        # In units of 2**-40, rounded up: 2**18 tokens of probability 1 do not overflow.
        ends = (((bin_ids + 1) << _BIN_SHIFT) + _FIRST_BIN).to(tl.float32, bitcast=True)
        most = counted * ((ends * 2.0**40).to(tl.int64) + 1)
        found = tl.max(tl.where(tl.cumsum(most, 0) - most <= may_drop, bin_ids, 0), 0)
    return found


@triton.jit
def gather_kernel(
    logits, edited, slots, parameters, best, sums, weights, thresholds, bins, gathered, row_stride,
    VOCAB_SIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Gather the probabilities, in any order, among which a row's thresholds lie, with all that are larger."""
    row, slot = tl.program_id(0), tl.load(slots + tl.program_id(0))
    if slot < 0:
        return
    temperature = _number(parameters, slot, _TEMPERATURE).to(tl.float32)
    if temperature == 0 or not _is_filtered(parameters, slot, VOCAB_SIZE):
        return
    lowest = _lowest_bin(parameters, slot, bins, weights, row, VOCAB_SIZE, BLOCKS, PADDED)
    least = tl.where(lowest > 0, (lowest << _BIN_SHIFT) + _FIRST_BIN, 1)
    largest, denominator = _softmax_of(best, sums, row, temperature, BLOCKS, PADDED)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = _load(logits, edited, _integer(parameters, slot, _EDITS), row, row_stride, columns, VOCAB_SIZE)
    probability = _probability(x, largest, temperature, denominator)
    taken = (probability.to(tl.int32, bitcast=True) >= least) & (_weight(probability) >= tl.load(thresholds + row))
    place = tl.cumsum(taken.to(tl.int32), 0) - 1
    place += tl.atomic_add(bins + row * (_BINS_ + 1) + _BINS_, tl.sum(taken.to(tl.int32), 0))
    tl.store(gathered + row.to(tl.int64) * VOCAB_SIZE + place, probability, taken)


@triton.jit
def _amount(probability, key, threshold, BY_WEIGHT: tl.constexpr):
    """Return how many probabilities, or how much weight, have at least these bits and this weight."""
    weight = _weight(probability)
    kept = (probability.to(tl.int32, bitcast=True) >= key) & (weight >= threshold) & (weight > 0)
    return tl.sum(tl.where(kept, weight, 0) if BY_WEIGHT else kept.to(tl.int64), 0)


@triton.jit
def _reach(first, source, num_values, key, threshold, BY_WEIGHT: tl.constexpr, BLOCK: tl.constexpr):
    """Return `_amount` of all values that were gathered, the first block of which is in registers."""
    amount = _amount(first, key, threshold, BY_WEIGHT)
    for start in range(BLOCK, num_values, BLOCK):
        index = start + tl.arange(0, BLOCK)
        amount += _amount(tl.load(source + index, index < num_values, other=0.0), key, threshold, BY_WEIGHT)
    return amount


@triton.jit
def _search(first, source, num_values, needed, threshold, BY_WEIGHT: tl.constexpr, BLOCK: tl.constexpr):
    """Return the largest threshold, not below the one given, that enough probabilities, or enough weight, reach.

    The bits of that probability are found from the highest on: those of 1 are the first of 30.
    """
    key = tl.full((), 0, tl.int32)
    for i in range(30):
        tried = key | (1 << (29 - i))
        key = tl.where(_reach(first, source, num_values, tried, threshold, BY_WEIGHT, BLOCK) >= needed, tried, key)
    return tl.maximum(threshold, _weight(key.to(tl.float32, bitcast=True)))


@triton.jit
def threshold_kernel(
    slots, parameters, weights, thresholds, bins, gathered,
    VOCAB_SIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Find the weight of the last token that top_k keeps, then of the last that top_p keeps of what is left."""
    row, slot = tl.program_id(0), tl.load(slots + tl.program_id(0))
    if slot < 0:
        return
    if _number(parameters, slot, _TEMPERATURE) == 0 or not _is_filtered(parameters, slot, VOCAB_SIZE):
        return
    source, num_values = gathered + row.to(tl.int64) * VOCAB_SIZE, tl.load(bins + row * (_BINS_ + 1) + _BINS_)
    index, blocks = tl.arange(0, BLOCK), tl.arange(0, PADDED)
    first = tl.load(source + index, index < num_values, other=0.0)
    total = tl.sum(tl.load(weights + row * BLOCKS + blocks, blocks < BLOCKS, other=0), 0)
    threshold = tl.load(thresholds + row)
    top_k, top_p = _integer(parameters, slot, _TOP_K), _number(parameters, slot, _TOP_P)
    if (top_k > 0) & (top_k < VOCAB_SIZE):
        threshold = _search(first, source, num_values, top_k, threshold, False, BLOCK)
        total = _reach(first, source, num_values, 0, threshold, True, BLOCK)
    if top_p < 1.0:
        threshold = _search(first, source, num_values, _share(top_p, total), threshold, True, BLOCK)
    tl.store(thresholds + row, threshold)


@triton.jit
def _drawn(
    logits, edited, slot, parameters, best, sums, weights, thresholds, row, row_stride,
    VOCAB_SIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Return the first token whose cumulative weight exceeds a random part of the total, `bits / 2**64` of it."""
    temperature = _number(parameters, slot, _TEMPERATURE).to(tl.float32)
    blocks = tl.arange(0, PADDED)
    of_blocks = tl.load(weights + row * BLOCKS + blocks, blocks < BLOCKS, other=0)
    bits = _random_bits(_integer(parameters, slot, _SEED), _integer(parameters, slot, _POSITION))
    target = tl.umulhi(bits, tl.sum(of_blocks, 0).to(tl.uint64)).to(tl.int64)
    is_before = tl.cumsum(of_blocks, 0) <= target
    block = tl.minimum(tl.sum(is_before.to(tl.int32), 0), BLOCKS - 1)
    target -= tl.sum(tl.where(is_before, of_blocks, 0), 0)
    largest, denominator = _softmax_of(best, sums, row, temperature, BLOCKS, PADDED)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    x = _load(logits, edited, _integer(parameters, slot, _EDITS), row, row_stride, columns, VOCAB_SIZE)
    weight = _weight(_probability(x, largest, temperature, denominator))
    weight = tl.where(weight >= tl.load(thresholds + row), weight, 0)
    return block * BLOCK + tl.sum((tl.cumsum(weight, 0) <= target).to(tl.int32), 0)


@triton.jit
def choose_kernel(
    logits, edited, slots, parameters, counts, raw_best, best, sums, weights, thresholds, ids, statuses, row_stride,
    IS_RANDOM: tl.constexpr, VOCAB_SIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    """Write each row's token and status, and tell the row's state of its token."""
    row, slot, blocks = tl.program_id(0), tl.load(slots + tl.program_id(0)), tl.arange(0, PADDED)
    if slot < 0:
        tl.store(ids + row, -1)
        tl.store(statuses + row, _OK)
        return
    lowest: tl.constexpr = _MINUS_INFINITY << 32
    raw = tl.max(tl.load(raw_best + row * BLOCKS + blocks, blocks < BLOCKS, other=lowest), 0) >> 32
    both = tl.max(tl.load(best + row * BLOCKS + blocks, blocks < BLOCKS, other=lowest), 0)
    is_finite = (raw < _INFINITY) & ((both >> 32) < _INFINITY)
    is_left = (raw > _MINUS_INFINITY) & ((both >> 32) > _MINUS_INFINITY)
    status = tl.where(is_finite, tl.where(is_left, _OK, _NO_TOKEN_LEFT), _NOT_FINITE)
    tl.store(statuses + row, status)
    if status != _OK:
        tl.store(ids + row, -1)
        return
    token_id = (both & _LAST_ID).to(tl.int32) ^ _LAST_ID
    if IS_RANDOM and _number(parameters, slot, _TEMPERATURE) > 0:
        token_id = _drawn(logits, edited, slot, parameters, best, sums, weights, thresholds, row, row_stride,
                          VOCAB_SIZE, BLOCK, BLOCKS, PADDED)  # fmt: skip
    tl.store(ids + row, token_id)
    position = _integer(parameters, slot, _POSITION)
    tl.store(parameters + slot.to(tl.int64) * _NUM_FIELDS + _POSITION, position + 1)
    if counts is not None and (_integer(parameters, slot, _EDITS) & _PENALTIES) != 0:
        place = counts + slot.to(tl.int64) * VOCAB_SIZE + token_id
        counted = tl.load(place)
        tl.store(place, tl.where((counted & 0x7FFF) == 0x7FFF, counted, counted + 1).to(tl.int16))


@triton.jit
def rank_kernel(
    logits, ids, raw_best, raw_sums, num_above, tops, row_stride,
    NUM: tl.constexpr, VOCAB_SIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Write of each block how many logprobs are above the chosen token's, and the `NUM` largest, ties by id."""
    row, block = tl.program_id(0), tl.program_id(1)
    token_id = tl.load(ids + row)
    if token_id < 0:
        return
    largest, denominator = _softmax_of(raw_best, raw_sums, row, tl.full((), 1.0, tl.float32), BLOCKS, PADDED)
    columns, here = block * BLOCK + tl.arange(0, BLOCK), row * BLOCKS + block
    logprobs = _load(logits, None, 0, row, row_stride, columns, VOCAB_SIZE) - largest - tl.log(denominator)
    own = tl.load(logits + row.to(tl.int64) * row_stride + token_id).to(tl.float32) - largest - tl.log(denominator)
    tl.store(num_above + here, tl.sum((logprobs > own).to(tl.int32), 0))
    keys = (_ordered(logprobs).to(tl.int64) << 32) | (columns ^ _LAST_ID).to(tl.int64)
    keys = tl.where(columns < VOCAB_SIZE, keys, _LOWEST)
    for i in range(NUM):
        top = tl.max(keys, 0)
        tl.store(tops + here * NUM + i, top)
        keys = tl.where(keys == top, _LOWEST, keys)


@triton.jit
def logprobs_kernel(
    logits, ids, raw_best, raw_sums, num_above, tops, logprobs, token_ids, ranks, row_stride,
    NUM: tl.constexpr, BLOCKS: tl.constexpr, PADDED: tl.constexpr, TOPS: tl.constexpr,
):  # fmt: skip
    """Write each row's logprobs: the chosen token's, then the `NUM` largest; a rank counts what is strictly above."""
    row, blocks, here = tl.program_id(0), tl.arange(0, PADDED), tl.program_id(0) * (NUM + 1)
    token_id = tl.load(ids + row)
    if token_id < 0:
        return
    largest, denominator = _softmax_of(raw_best, raw_sums, row, tl.full((), 1.0, tl.float32), BLOCKS, PADDED)
    own = tl.load(logits + row.to(tl.int64) * row_stride + token_id).to(tl.float32) - largest - tl.log(denominator)
    above = tl.sum(tl.load(num_above + row * BLOCKS + blocks, blocks < BLOCKS, other=0), 0)
    tl.store(logprobs + here, own)
    tl.store(token_ids + here, token_id)
    tl.store(ranks + here, above + 1)
    if NUM > 0:
        index = tl.arange(0, TOPS)
        keys = tl.load(tops + row * BLOCKS * NUM + index, index < BLOCKS * NUM, other=_LOWEST)
        rank, before = tl.full((), 1, tl.int32), tl.full((), _NAN, tl.int32)
        for i in range(NUM):
            top = tl.max(keys, 0)
            keys = tl.where(keys == top, _LOWEST, keys)
            key = (top >> 32).to(tl.int32)
            rank = tl.where(key == before, rank, i + 1)
            before = key
            tl.store(logprobs + here + 1 + i, _value(key))
            tl.store(token_ids + here + 1 + i, (top & _LAST_ID).to(tl.int32) ^ _LAST_ID)
            tl.store(ranks + here + 1 + i, rank)
