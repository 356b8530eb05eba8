// What becomes of a warpgroup's sums: scales, biases, the activation, and rows of 16 bytes and more in device memory.
//
// A thread holds, of each product, rows r and r + 8 of its warp's 16 (r = lane / 4) for places 8 i + 2 (lane % 4) and
// the next. Groups of 8 places pass through shared memory, so that a lane stores 8 neighbouring rows of one place.
#pragma once

#include "schedule.cuh"

template <int WIDTH>
struct Product;  // build.py writes one for each width: 64 rows by WIDTH places, added to sums

struct Sums {  // of the two products: gate and up rows, or the lower and upper 16 of each 32 rows
  float first[VALUES], second[VALUES];
  float unit[4];  // codes: what the sums of rows r and r + 8 of either are multiples of
};

DEV float sigmoid(float v) { return fast_divide(1.0f, 1.0f + fast_exp(-v)); }

DEV float activate(float gate, float up) {
  if constexpr (ACTIVATION == SWIGLU) return gate * sigmoid(gate) * up;
  if constexpr (ACTIVATION == GEGLU)  // the tanh form: z (1 + tanh a) / 2 = z sigmoid(2 a)
    return gate * sigmoid(1.5957691216057308f * (gate + 0.044715f * gate * gate * gate)) * up;
  gate = gate < 7.0f ? gate : 7.0f;
  up = up < -7.0f ? -7.0f : up > 7.0f ? 7.0f : up;
  return (up + 1.0f) * gate * sigmoid(1.702f * gate);
}

struct Finisher {
  static constexpr int KEPT = (TOKENS + 31) / 32;
  const Problem& p;
  const Tile tile;
  const int lane, column;  // first row of the warp's, within the expert
  const uint32_t staging;
  uint32_t slot[KEPT];    // lane l of number i: that of place 32 i + l
  float scale[KEPT];      // e4m3: of the tokens, likewise
  float bias[4], row_scale[4];  // rows r and r + 8 of the first product, then of the second; codes: 0 past the last

  DEV Finisher(const Problem& problem, const Tile& t, int group, int warp, int l)
      : p(problem), tile(t), lane(l),
        column(t.matrix ? OUT_COLUMNS * t.block + 128 * group + 32 * warp
                        : HIDDEN_COLUMNS * t.block + 64 * group + 16 * warp),
        staging(STAGING + (4 * group + warp) * STAGING_BYTES) {
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
      const int place = 32 * i + lane < tile.count ? 32 * i + lane : 0;
      slot[i] = tile.matrix || EIGHT ? p.slots[tile.first + place] : 0;
      if constexpr (EIGHT)
        scale[i] = p.source_scale[tile.matrix][tile.matrix ? tile.first + place : static_cast<int>(slot[i]) / p.top_k];
    }
    const int width = p.columns[1 - tile.matrix], second = tile.matrix ? 16 : width;
    const int64_t start = static_cast<int64_t>(tile.expert) * (tile.matrix ? width : 2 * width);
    const float* biases = p.bias[tile.matrix];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = row_at(column + lane / 4 + 8 * (i & 1)) + (tile.matrix ? 8 * (i & 2) : 0);
      const bool inside = row < width;
      const int64_t at = start + row + (tile.matrix || i < 2 ? 0 : second);
      bias[i] = biases && inside ? biases[at] : 0.0f;
      if constexpr (EIGHT) row_scale[i] = inside ? p.row_scale[tile.matrix][at] : 0.0f;
      if constexpr (PLANES) row_scale[i] = inside ? 1.0f : 0.0f;
    }
  }

  // The row of a position: with codes, hidden values come in the order in which they are multiplied.
  DEV int row_at(int position) const {
    if (PLANES == 0 || tile.matrix) return position;
    return position / CHUNK * CHUNK + column_at(position % CHUNK);
  }

  DEV void take_units(const Sums& sums) {
    if constexpr (PLANES)
      for (int i = 0; i < 4; ++i) row_scale[i] *= sums.unit[i];
  }

  // Value v of group i of a product, where `row` is 0 for the first product and 2 for the second.
  DEV float finished(const float (&sums)[VALUES], int i, int v, int row, const float (&token_scale)[2]) const {
    const int r = row + v / 2;
    if constexpr (EIGHT) return sums[4 * i + v] * (row_scale[r] * token_scale[v % 2]) + bias[r];
    if constexpr (PLANES) return sums[4 * i + v] * row_scale[r] + bias[r];
    return sums[4 * i + v] + bias[r];
  }

  DEV void token_scales(int i, float (&result)[2]) const {
    if constexpr (EIGHT)
      for (int v = 0; v < 2; ++v)
        result[v] = as_float(shuffle_from(as_bits(scale[i / 4]), 8 * (i % 4) + 2 * (lane % 4) + v));
  }

  // Two groups of 8 places by 16 hidden values at a time: 32 bytes of a place.
  DEV void store_hidden(const Sums& sums) const {
    const int width = source_columns(p, 1), named = 8 * (lane / 16) + lane % 8, named_piece = lane / 8 % 2;
    const uint32_t into = 32 * named + 16 * (named_piece ^ (named / 4 % 2));
    const int place = lane / 2, piece = lane % 2;
    const uint32_t from = 32 * place + 16 * (piece ^ (place / 4 % 2));
    uint16_t* to = p.hidden + static_cast<int64_t>(tile.first + place) * width + column + 8 * piece;
    const bool inside = column + 8 * piece < width;
#pragma unroll
    for (int i = 0; i < OCTETS; i += 2) {
      if (8 * i >= tile.count) continue;
      const uint32_t buffer = staging + (i / 2 % 2) * (STAGING_BYTES / 2);
      uint32_t packed[4], row[4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float by[2], value[4];
        token_scales(i + j, by);
#pragma unroll
        for (int v = 0; v < 4; ++v)
          value[v] = activate(finished(sums.first, i + j, v, 0, by), finished(sums.second, i + j, v, 2, by));
        packed[2 * j] = pack_bf16(value[0], value[1]);
        packed[2 * j + 1] = pack_bf16(value[2], value[3]);
      }
      store_columns(buffer + into, packed);
      sync_warp();
      lds128(buffer + from, row);
      if (inside && 8 * i + place < tile.count) store_piece(to + static_cast<int64_t>(8 * i) * width, row);
    }
  }

  // Two groups of 8 places by 32 outputs at a time: 64 bytes of a place, which goes to its slot.
  DEV void store_out(const Sums& sums) const {
    const int width = p.columns[0];
    const uint32_t into = 64 * (lane % 8) + 16 * (lane / 8 ^ (lane / 2 % 4));
    const int place = lane / 4, piece = lane % 4;
    const uint32_t from = 64 * place + 16 * (piece ^ (place / 2 % 4));
    const bool inside = column + 8 * piece < width;
#pragma unroll
    for (int i = 0; i < OCTETS; i += 2) {
      if (8 * i >= tile.count) continue;
      uint32_t row[2][4];
#pragma unroll
      for (int g = 0; g < 2; ++g) {
        uint32_t packed[4];
        float by[2];
        token_scales(i + g, by);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int v = 2 * j;
          packed[j] = pack_bf16(finished(sums.first, i + g, v, 0, by), finished(sums.first, i + g, v + 1, 0, by));
          packed[2 + j] = pack_bf16(finished(sums.second, i + g, v, 2, by), finished(sums.second, i + g, v + 1, 2, by));
        }
        store_columns(staging + g * (STAGING_BYTES / 2) + into, packed);
      }
      sync_warp();
#pragma unroll
      for (int g = 0; g < 2; ++g) lds128(staging + g * (STAGING_BYTES / 2) + from, row[g]);
      sync_warp();  // the next groups go where these were
#pragma unroll
      for (int g = 0; g < 2; ++g) {
        const int64_t target = shuffle_from(slot[i / 4], 8 * (i % 4 + g) + place);
        uint16_t* to = p.out + target * width + column + 8 * piece;
        if (inside && 8 * (i + g) + place < tile.count) store_output(to, row[g]);
      }
    }
  }
};
