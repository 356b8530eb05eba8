// The plan every block makes for itself from the ids: segments in order of expert, their slots, and the block's own
// range of units, so that all blocks read equal shares. A slot's result depends on its segment, not on its place there:
// the order of an expert's slots is only settled where they fill more than one segment.
#pragma once

#include "layout.cuh"

// What a thread reads of device memory for the plan: all at once, and nothing waits for it here.
struct Slots {
  static constexpr int EACH = (MAX_SLOTS + THREADS - 1) / THREADS;
  uint32_t id[EACH], above[EACH];  // the lower and the upper word
  uint32_t raw_gate[EACH];
  int bits[2];  // of two neighbouring experts

  // Where `alone`, every warp reads the first 32 slots.
  DEV Slots(const Problem& p, int thread, bool alone) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      const int slot = alone ? thread % 32 : thread + i * THREADS;
      id[i] = above[i] = ~0u, raw_gate[i] = 0;
      if (slot >= p.tokens * p.top_k || (alone && i > 0)) continue;
      const uint32_t* ids = static_cast<const uint32_t*>(p.ids) + (p.wide_ids ? 2 * slot : slot);
      id[i] = ids[0], above[i] = p.wide_ids ? ids[1] : 0;
      const uint16_t* gates = static_cast<const uint16_t*>(p.gates) + (p.narrow_gates ? slot : 2 * slot);
      raw_gate[i] = p.narrow_gates ? gates[0] : *reinterpret_cast<const uint32_t*>(gates);
    }
    for (int i = 0; i < 2; ++i) {
      bits[i] = p.bits_all;
      if (p.bits && 2 * thread + i < p.experts) bits[i] = p.bits[2 * thread + i];
    }
  }
  DEV float gate(const Problem& p, int i) const { return as_float(p.narrow_gates ? raw_gate[i] << 16 : raw_gate[i]); }
  DEV bool inside(const Problem& p, int i) const { return above[i] == 0 && id[i] < static_cast<uint32_t>(p.experts); }
};

struct Sums {  // running sums over experts
  uint32_t packed;  // segments << 16 | slots
  uint32_t cost;
};

constexpr int SCAN_WARPS = MAX_EXPERTS / 64;  // a thread scans two experts

DEV Sums scan_experts(Sums own, int thread) {  // inclusive, over the first SCAN_WARPS warps; all threads must call
  const int warp = thread / 32;
  if (warp < SCAN_WARPS) {
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
      uint32_t packed = shuffle_up(own.packed, by), cost = shuffle_up(own.cost, by);
      if ((thread & 31) >= by) own.packed += packed, own.cost += cost;
    }
    if (thread % 32 == 31) sts32(SCAN + 8 * warp, own.packed), sts32(SCAN + 8 * warp + 4, own.cost);
  }
  sync_block();
#pragma unroll
  for (int before = 0; before < SCAN_WARPS - 1; ++before) {
    uint32_t sums[2];
    lds64(SCAN + 8 * before, sums);
    if (before < warp) own.packed += sums[0], own.cost += sums[1];
  }
  return own;
}

// The first `part` of `parts` parts of an amount: grows with the part, and every block finds the same.
DEV uint32_t share_of(uint32_t amount, int part, int parts) {
  if (part == parts) return amount;
  const float share = fast_divide(static_cast<float>(part), static_cast<float>(parts));
  const uint32_t first = static_cast<uint32_t>(static_cast<float>(amount) * share);
  return first < amount ? first : amount;
}

// The unit that lies so far into a segment.
DEV uint32_t unit_at(uint32_t cost, uint32_t cost_of_unit, uint32_t units) {
  if (cost == cost_of_unit * units) return units;
  const uint32_t unit = static_cast<uint32_t>(fast_divide(static_cast<float>(cost), static_cast<float>(cost_of_unit)));
  return unit < units ? unit : units;
}

struct ExpertPlan {  // of one expert, by the thread that scans it
  uint32_t count, segments, planes, cost;

  template <class Format>
  DEV static ExpertPlan of(const Problem& p, uint32_t count, int planes) {
    ExpertPlan e{count, 0, 0, 0};
    if (count == 0) return e;
    const uint32_t cap = p.row_cap;
    e.segments = count <= cap ? 1 : (count + cap - 1) / cap;
    e.planes = planes;
    const int tiles = tiles_of(count < cap ? count : cap, Format::TILE_TOKENS);
    e.cost = Format::slot_bytes(e.planes) / 64 + 2 + Format::TILE_COST * (tiles - 1);
    return e;
  }
  DEV void write(const Problem& p, int expert, uint32_t row, uint32_t segment, uint32_t before) const {
#pragma unroll 1
    for (uint32_t i = 0; i < segments; ++i) {
      const uint32_t left = count - i * p.row_cap, rows = left < p.row_cap ? left : p.row_cap;
      sts32(SEGMENT + 4 * (segment + i), static_cast<uint32_t>(expert) << 16 | (row + i * p.row_cap));
      sts32(SEGMENT_ROWS + 4 * (segment + i), planes << 16 | rows);
      sts32(COST + 4 * (segment + i), before + i * cost);
    }
  }
};

DEV uint32_t units_of(const Problem& p, int matrix) {  // of a segment
  return matrix == 0 ? p.columns[1] / 16 : p.splits * (p.columns[0] / 32);
}

constexpr int FEW_SEGMENTS = 8;  // blocks for a segment, at least, where each block keeps to one

// The whole quotient of numbers below 2^20: the division is off by less than the half that keeps it from the next.
DEV int quotient(int of, int by) {
  return static_cast<int>(fast_divide(static_cast<float>(of) + 0.5f, static_cast<float>(by)));
}

// Where segments are few, a block in two of them would be late, and all would wait for it.
DEV void write_aligned_range(const Problem& p, int boundary, int num_segments) {
  const int blocks = quotient(num_blocks(), num_segments), segment = quotient(block_index(), blocks);
  const int part = block_index() - segment * blocks, units = units_of(p, boundary / 2);
  const bool idle = segment >= num_segments;
  sts32(INFO_RANGE + 8 * boundary, idle ? 0 : segment);
  sts32(INFO_RANGE + 8 * boundary + 4, idle ? 0 : share_of(units, part + boundary % 2, blocks));
}

DEV bool few_segments(int num_segments) { return num_segments * FEW_SEGMENTS <= num_blocks(); }

template <class Format>
DEV int waves_of(const Problem& p, int num_segments, int kept) {
  if (few_segments(num_segments) || kept >= Format::ONE_WAVE_ROWS * num_segments) return 1;
  return num_segments * (p.columns[1] / 16) < MAX_WAVES * WAVE_UNITS * num_blocks() ? 1 : MAX_WAVES;
}

// What the runs of earlier segments cost beside their units: each as much as six rows, and its rows.
DEV uint32_t cost_of_runs(uint32_t run_cost, uint32_t segments, uint32_t rows) {
  return run_cost * (6 * segments + rows);
}

// One of the boundaries of the block's ranges, by a warp: the segment that holds it writes it.
template <class Format>
DEV void write_range(const Problem& p, int boundary, int waves, int num_segments, uint32_t total, uint32_t kept,
                     int lane) {
  const int phase = boundary / 2, matrix = phase / waves, wave = phase % waves;
  const uint32_t num = units_of(p, matrix), run_cost = quotient(Format::RUN_COST, p.jobs[matrix]);
  const uint32_t all = total * num + cost_of_runs(run_cost, num_segments, kept);
  const uint32_t target = share_of(all, wave * num_blocks() + block_index() + boundary % 2, waves * num_blocks());
  if (all == 0 && lane < 2) sts32(INFO_RANGE + 8 * boundary + 4 * lane, 0);
#pragma unroll 1
  for (int segment = lane; segment < num_segments; segment += 32) {
    const uint32_t before = lds32(COST + 4 * segment), cost = lds32(COST + 4 * segment + 4) - before;
    const uint32_t row = lds32(SEGMENT + 4 * segment) & 0xffff, rows = lds32(SEGMENT_ROWS + 4 * segment) & 0xffff;
    const uint32_t from = before * num + cost_of_runs(run_cost, segment, row), own = cost_of_runs(run_cost, 1, rows);
    const bool last = segment == num_segments - 1 && target == all;
    if (target < from || !(target < from + own + cost * num || last)) continue;
    sts32(INFO_RANGE + 8 * boundary, segment);
    sts32(INFO_RANGE + 8 * boundary + 4, target < from + own ? 0 : unit_at(target - from - own, cost, num));
  }
}

// A warp looks for one of the eight boundaries.
template <class Format>
DEV void write_ranges(const Problem& p, int thread) {
  const int num_segments = static_cast<int>(lds32(INFO_SEGMENTS)), boundary = thread / 32;
  const int waves = waves_of<Format>(p, num_segments, static_cast<int>(lds32(INFO_KEPT)));
  if (thread == 0) sts32(INFO_WAVES, waves);
  if (few_segments(num_segments) && num_segments > 0) {
    if (thread < 4) write_aligned_range(p, thread, num_segments);
  } else if (boundary < 4 * waves) {
    const uint32_t total = lds32(COST + 4 * num_segments), kept = lds32(INFO_KEPT);
    write_range<Format>(p, boundary, waves, num_segments, total, kept, thread % 32);
  }
}

// Up to 32 slots: a warp makes the plan in its registers, a lane for each slot. Every warp does, and all write the
// same words, so that none waits for another. False, in all, where an expert's slots fill more than one segment.
template <class Format>
DEV bool plan_alone(const Problem& p, const Slots& read, int lane) {
  const int slots = p.tokens * p.top_k;
  const float gate = read.gate(p, 0);
  const bool kept = lane < slots && read.inside(p, 0) && gate != 0.f;
  const uint32_t own = kept ? read.id[0] : ~0u;
  uint32_t row = 0, rank = 0, count = 0;
#pragma unroll 4
  for (int other = 0; other < slots; ++other) {
    const uint32_t id = shuffle_from(own, other);
    row += id < own, count += id == own, rank += id == own && other < lane;
  }
  const uint32_t most = warp_max(kept ? count : 0);
  if (most > static_cast<uint32_t>(p.row_cap)) return false;
  const bool first = kept && rank == 0;
  const int planes = p.bits ? (first ? lds16(EXPERT_PLANES + 2 * own) : 0) : Format::depth(p.bits_all);
  const ExpertPlan plan = ExpertPlan::of<Format>(p, first ? count : 0, planes);
  const uint32_t leads = first ? own : ~0u;
  uint32_t segment = 0, before = 0;
#pragma unroll 4
  for (int other = 0; other < slots; ++other) {
    const bool earlier = shuffle_from(leads, other) < own;
    segment += earlier;
    const uint32_t cost = shuffle_from(plan.cost, other);
    before += earlier ? cost : 0;
  }
  const uint32_t segments = warp_max(first ? segment + 1 : 0), total = warp_max(first ? before + plan.cost : 0);
  const uint32_t widest = warp_max(plan.planes);
  if (first) {
    sts32(SEGMENT + 4 * segment, own << 16 | row), sts32(SEGMENT_ROWS + 4 * segment, plan.planes << 16 | count);
    sts32(COST + 4 * segment, before);
  }
  if (kept) sts16(ROW_SLOT + 2 * (row + rank), static_cast<uint16_t>(lane));
  if (lane < slots) sts_float(GATES + 4 * lane, kept ? gate : 0.f);
  const uint32_t all_kept = warp_max(kept ? row + rank + 1 : 0);
  const int waves = waves_of<Format>(p, static_cast<int>(segments), static_cast<int>(all_kept));
  if (lane == 0) {
    sts32(INFO_SEGMENTS, segments), sts32(INFO_MAX_ROWS, most), sts32(INFO_MAX_PLANES, widest);
    sts32(INFO_WAVES, waves), sts32(COST + 4 * segments, total);
  }
  sync_warp();
  if (segments > 0 && few_segments(static_cast<int>(segments))) {
    if (lane < 4) write_aligned_range(p, lane, static_cast<int>(segments));
  } else {
#pragma unroll 1
    for (int boundary = 0; boundary < 4 * waves; ++boundary)
      write_range<Format>(p, boundary, waves, static_cast<int>(segments), total, all_kept, lane);
  }
  sync_warp();
  return true;
}

// The slots of the same expert before this one.
DEV uint32_t rank_of(uint32_t experts, int slot, int expert) {
  uint32_t rank = 0;
#pragma unroll 1
  for (int before = 0; before < slot; ++before) rank += lds16(experts + 2 * before) == expert;
  return rank;
}

// The scratch lies where the ring will: for each expert a count of slots, then its first row; each slot's expert.
template <class Format>
DEV void make_plan(const Problem& p, const Slots& read, int thread) {
  const uint32_t counts = DYNAMIC, first_rows = counts + 4 * MAX_EXPERTS, experts = first_rows + 4 * MAX_EXPERTS;
  const int slots = p.tokens * p.top_k;
  int expert[Slots::EACH];
  uint32_t rank[Slots::EACH];
  for (int i = thread; i < MAX_EXPERTS; i += THREADS) sts32(counts + 4 * i, 0);
  if (thread < 3) sts32(INFO + 4 * thread, 0);
  sync_block();

#pragma unroll
  for (int i = 0; i < Slots::EACH; ++i) {
    const int slot = thread + i * THREADS;
    const float gate = read.gate(p, i);
    const bool kept = read.inside(p, i) && gate != 0.f;
    expert[i] = kept ? static_cast<int>(read.id[i]) : -1;
    if (slot < slots) sts_float(GATES + 4 * slot, kept ? gate : 0.f);
    if (kept) rank[i] = shared_add(counts + 4 * expert[i], 1);
    if (slot < slots) sts16(experts + 2 * slot, static_cast<uint16_t>(expert[i]));
  }
  sync_block();

  ExpertPlan mine[2] = {};
  if (thread < MAX_EXPERTS / 2) {
    uint32_t count[2];
    lds64(counts + 8 * thread, count);
    for (int i = 0; i < 2; ++i) mine[i] = ExpertPlan::of<Format>(p, count[i], Format::depth(read.bits[i]));
    const uint32_t most = count[0] > count[1] ? count[0] : count[1];
    const uint32_t rows = warp_max(most < p.row_cap ? most : p.row_cap);
    const uint32_t widest = warp_max(mine[0].planes > mine[1].planes ? mine[0].planes : mine[1].planes);
    if (thread % 32 == 0) shared_max(INFO_MAX_ROWS, rows), shared_max(INFO_MAX_PLANES, widest);
  }
  const uint32_t segments = mine[0].segments + mine[1].segments, count = mine[0].count + mine[1].count;
  const uint32_t cost = mine[0].cost * mine[0].segments + mine[1].cost * mine[1].segments;
  const Sums upto = scan_experts({segments << 16 | count, cost}, thread);
  if (thread < MAX_EXPERTS / 2) {
    const uint32_t row = (upto.packed & 0xffff) - count, segment = (upto.packed >> 16) - segments;
    const uint32_t before = upto.cost - cost;
    sts32(first_rows + 8 * thread, row), sts32(first_rows + 8 * thread + 4, row + mine[0].count);
    mine[0].write(p, 2 * thread, row, segment, before);
    mine[1].write(p, 2 * thread + 1, row + mine[0].count, segment + mine[0].segments,
                  before + mine[0].cost * mine[0].segments);
    if (thread == MAX_EXPERTS / 2 - 1) {  // the last of the scan holds the totals
      sts32(INFO_SEGMENTS, upto.packed >> 16), sts32(INFO_KEPT, upto.packed & 0xffff);
      sts32(COST + 4 * (upto.packed >> 16), upto.cost);
    }
  }
  sync_block();

#pragma unroll
  for (int i = 0; i < Slots::EACH; ++i) {
    if (expert[i] < 0) continue;
    const int slot = thread + i * THREADS;
    if (lds32(counts + 4 * expert[i]) > p.row_cap) rank[i] = rank_of(experts, slot, expert[i]);
    sts16(ROW_SLOT + 2 * (lds32(first_rows + 4 * expert[i]) + rank[i]), static_cast<uint16_t>(slot));
  }
  write_ranges<Format>(p, thread);
  fence_async();  // the ring overwrites the scratch with copies
  sync_block();
}
