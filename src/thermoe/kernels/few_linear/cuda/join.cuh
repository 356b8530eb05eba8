// From parts to outputs: summed over the slices of a block, then over the blocks of the cluster, each unit in one of them.
#pragma once

#include "multiply.cuh"

DEV float bias_of(const Problem& p, int output) {
  const bool first = output < p.ends[0], second = output < p.ends[1];
  const uint16_t* bias = first ? p.bias[0] : second ? p.bias[1] : p.bias[2];
  return bias ? from_bf16(*(bias + output - (first ? 0 : second ? p.ends[0] : p.ends[1]))) : 0.0f;
}

// Lane l holds outputs 2 (l % 4) and one more, of tokens l / 4 and l / 4 + 8.
DEV void store_unit(const Problem& p, const Work& work, int unit, int lane, const float (&sum)[4]) {
  const int output = TILE * (work.first_tile + unit / TOKEN_TILES) + 2 * (lane % 4), all = p.ends[2];
  if (output >= all) return;
  const bool two = output + 1 < all;
  const float low = bias_of(p, output), high = two ? bias_of(p, output + 1) : 0.0f;
#pragma unroll
  for (int upper = 0; upper < (EIGHT ? 1 : 2); ++upper) {
    const int token = 16 * (unit % TOKEN_TILES) + 8 * upper + lane / 4;
    if (token >= p.tokens) continue;
    const uint32_t both = pack_bf16(sum[2 * upper] + low, sum[2 * upper + 1] + high);
    uint16_t* to = p.out + static_cast<int64_t>(token) * all + output;
    if (p.pairs) {
      store_pair(to, both);
    } else {
      store_half(to, both & 0xffff);
      if (two) store_half(to + 1, both >> 16);
    }
  }
}

template <int COUNT, class Place>
DEV void sum_up(float (&sum)[4], Place place) {  // in order
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] = 0.0f;
#pragma unroll
  for (int n = 0; n < COUNT; ++n) {
    uint32_t bits[4];
    lds128(place(n), bits);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += as_float(bits[i]);
  }
}

struct Round {
  int number, first_tile, tiles;  // counted from the block's first
};

DEV uint32_t inbox_at(const Problem& p, const Round& round, int index, int rank, int lane) {
  const int each = over(p.round_tiles * TOKEN_TILES, CLUSTER) * CLUSTER * UNIT_BYTES;
  return dynamic_start() + p.inbox_at + round.number % 2 * each + (index * CLUSTER + rank) * UNIT_BYTES + 16 * lane;
}

DEV void join(const Problem& p, const Work& work, const Parts& parts, const Round& round, int warp, int lane) {
  const int units = round.tiles * TOKEN_TILES, before = round.first_tile * TOKEN_TILES, shown = p.apart ? 0 : round.first_tile;
  const uint32_t bar = inbox_barrier(round.number % 2);
  named_wait<PARTS_READY>(32 * WARPS);  // all parts are there
  if (CLUSTER > 1 && round.number == 0) cluster_wait();
  if (CLUSTER > 1 && warp == 0 && elected()) {
    const int own = units > work.rank ? over(units - work.rank, CLUSTER) : 0;
    barrier_expect(bar, own * CLUSTER * UNIT_BYTES);
  }
  for (int unit = warp; unit < units; unit += WARPS) {
    float sum[4];
    sum_up<SLICES>(sum, [&](int slice) {
      return parts.at(shown + unit / TOKEN_TILES, slice, lane) + unit % TOKEN_TILES * BLOCK_BYTES;
    });
    if (CLUSTER == 1) {
      store_unit(p, work, before + unit, lane, sum);
    } else {
      const uint32_t bits[4] = {as_bits(sum[0]), as_bits(sum[1]), as_bits(sum[2]), as_bits(sum[3])};
      send(inbox_at(p, round, unit / CLUSTER, work.rank, lane), unit % CLUSTER, bits, bar);
    }
  }
  if (CLUSTER == 1) return;
  barrier_wait_cluster(bar, round.number / 2 % 2);
  for (int unit = work.rank + CLUSTER * warp; unit < units; unit += CLUSTER * WARPS) {
    float sum[4];
    sum_up<CLUSTER>(sum, [&](int rank) { return inbox_at(p, round, unit / CLUSTER, rank, lane); });
    store_unit(p, work, before + unit, lane, sum);
  }
}
