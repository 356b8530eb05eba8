// The plan every block makes for itself from the ids: segments in order of expert, their slots in order, and the
// block's own range of units, so that all blocks read equal shares of the weights.
#pragma once

#include "layout.cuh"

DEV int slot_expert(const Problem& p, int slot) {
  if (p.wide_ids) {
    int64_t id = static_cast<const int64_t*>(p.ids)[slot];
    return id >= 0 && id < p.experts ? static_cast<int>(id) : -1;
  }
  int32_t id = static_cast<const int32_t*>(p.ids)[slot];
  return id < p.experts ? id : -1;
}

DEV float slot_gate(const Problem& p, int slot) {
  if (p.narrow_gates) return as_float(static_cast<uint32_t>(static_cast<const uint16_t*>(p.gates)[slot]) << 16);
  return static_cast<const float*>(p.gates)[slot];
}

struct Sums {  // running sums over experts
  uint32_t packed;  // segments << 16 | slots
  uint32_t cost;
};

DEV Sums scan_block(Sums own, int thread) {  // inclusive, over the first 512 threads; all threads must call
  for (int by = 1; by < 32; by *= 2) {
    uint32_t packed = shuffle_up(own.packed, by), cost = shuffle_up(own.cost, by);
    if ((thread & 31) >= by) own.packed += packed, own.cost += cost;
  }
  int warp = thread / 32;
  if (thread % 32 == 31 && warp < 16) sts32(SCAN + 8 * warp, own.packed), sts32(SCAN + 8 * warp + 4, own.cost);
  sync_block();
  for (int before = 0; before < warp && before < 16; ++before) {
    own.packed += lds32(SCAN + 8 * before);
    own.cost += lds32(SCAN + 8 * before + 4);
  }
  return own;
}

// amount * block / num_blocks, where the product may pass 32 bits: blocks are few.
DEV uint32_t share_of(uint32_t amount, uint32_t block) {
  const uint32_t blocks = num_blocks(), whole = amount / blocks;
  return whole * block + (amount - whole * blocks) * block / blocks;
}

// The scratch lies where the ring will: 16 words of slot bits and one word of first row for each expert.
template <class Format>
DEV void make_plan(const Problem& p, int thread) {
  const int slots = p.tokens * p.top_k;
  const uint32_t marks = DYNAMIC, first_row = DYNAMIC + 64 * p.experts;
  const uint32_t nothing[4] = {0, 0, 0, 0};
  int expert_mine = -1;
  float gate = 0.f;
  if (thread < slots) expert_mine = slot_expert(p, thread), gate = slot_gate(p, thread);
  for (int i = thread; i < 4 * p.experts; i += THREADS) sts128(marks + 16 * i, nothing);
  if (thread < 3) sts32(INFO + 4 * thread, 0);
  sync_block();

  const bool kept = expert_mine >= 0 && gate != 0.f;
  if (thread < slots) sts_float(GATES + 4 * thread, kept ? gate : 0.f);
  if (kept) shared_or(marks + 64 * expert_mine + 4 * (thread / 32), 1u << (thread % 32));
  sync_block();

  int count = 0, segments = 0, bits = p.bits_all;
  uint32_t cost = 0;
  if (thread < p.experts) {
    for (int i = 0; i < 4; ++i) {
      uint32_t words[4];
      lds128(marks + 64 * thread + 16 * i, words);
      for (int j = 0; j < 4; ++j) count += count_bits(words[j]);
    }
    if (count > 0) {
      if (p.bits) bits = p.bits[thread];
      bits = bits <= 2 ? 2 : bits <= 4 ? 4 : bits <= 8 ? 8 : 16;
      segments = (count + p.row_cap - 1) / p.row_cap;
      cost = Format::slot_bytes(bits) / 64 + 2;
      shared_max(INFO_MAX_ROWS, count < p.row_cap ? count : p.row_cap);
      shared_max(INFO_MAX_BITS, bits);
    }
  }
  const uint32_t packed = static_cast<uint32_t>(segments) << 16 | static_cast<uint32_t>(count);
  const Sums upto = scan_block({packed, cost * segments}, thread);
  if (thread < p.experts) {
    int row = static_cast<int>(upto.packed & 0xffff) - count, segment = static_cast<int>(upto.packed >> 16) - segments;
    uint32_t before = upto.cost - cost * segments;
    sts32(first_row + 4 * thread, row);
    for (int i = 0; i < segments; ++i) {
      int left = count - i * p.row_cap;
      const uint32_t rows = left < p.row_cap ? left : p.row_cap, first = row + i * p.row_cap;
      sts32(SEGMENT + 4 * (segment + i), static_cast<uint32_t>(thread) << 16 | first);
      sts32(SEGMENT_ROWS + 4 * (segment + i), static_cast<uint32_t>(bits) << 16 | rows);
      sts32(COST + 4 * (segment + i), before + i * cost);
    }
  }
  if (thread == MAX_EXPERTS - 1) {  // the last of the scan holds the totals
    sts32(INFO_SEGMENTS, upto.packed >> 16);
    sts32(COST + 4 * (upto.packed >> 16), upto.cost);
  }
  sync_block();

  if (kept) {
    int rank = 0;
    for (int word = 0; word < thread / 32; ++word) rank += count_bits(lds32(marks + 64 * expert_mine + 4 * word));
    rank += count_bits(lds32(marks + 64 * expert_mine + 4 * (thread / 32)) & ((1u << (thread % 32)) - 1));
    sts16(ROW_SLOT + 2 * (lds32(first_row + 4 * expert_mine) + rank), static_cast<uint16_t>(thread));
  }
  const int num_segments = static_cast<int>(lds32(INFO_SEGMENTS));
  const uint32_t total = lds32(COST + 4 * num_segments);
  const int units[2] = {p.columns[1] / 16, p.splits * (p.columns[0] / 32)};  // of a segment
  if (thread < 4 && total == 0) sts32(INFO_RANGE + 4 * thread, 0);
  if (thread < num_segments) {  // the segment that holds a boundary writes it
    const uint32_t from = lds32(COST + 4 * thread), to = lds32(COST + 4 * thread + 4);
    for (int i = 0; i < 4; ++i) {
      const uint32_t num = units[i / 2], target = share_of(total * num, block_index() + i % 2);
      const bool last = thread == num_segments - 1 && target == total * num;
      if (target >= from * num && (target < to * num || last))
        sts32(INFO_RANGE + 4 * i, thread * num + (target - from * num) / (to - from));
    }
  }
  fence_async();  // the ring overwrites the scratch with copies
  sync_block();
}

struct Segment {
  int expert, first_row, rows, bits;
};

DEV Segment segment_at(int index) {
  uint32_t where = lds32(SEGMENT + 4 * index), what = lds32(SEGMENT_ROWS + 4 * index);
  return {static_cast<int>(where >> 16), static_cast<int>(where & 0xffff), static_cast<int>(what & 0xffff),
          static_cast<int>(what >> 16)};
}

// The block's runs of one matrix, in order: what all its warps walk through alike.
struct Runs {
  int unit, end;            // of the block's range
  int in_segment, in_run;   // units
  int segment, split, row;  // of the run that `unit` lies in; its first unit in the run
  int length;               // units of the block in the run

  DEV Runs(const Problem& p, int matrix) {
    unit = static_cast<int>(lds32(INFO_RANGE + 8 * matrix));
    end = static_cast<int>(lds32(INFO_RANGE + 8 * matrix + 4));
    in_run = matrix == 0 ? p.columns[1] / 16 : p.columns[0] / 32;
    in_segment = matrix == 0 ? in_run : in_run * p.splits;
    locate();
  }
  DEV void locate() {
    segment = unit / in_segment;
    int inside = unit - segment * in_segment;
    split = inside / in_run;
    row = inside - split * in_run;
    length = in_run - row < end - unit ? in_run - row : end - unit;
  }
  DEV bool more() const { return unit < end; }
  DEV void next() {
    unit += length;
    locate();
  }
};
