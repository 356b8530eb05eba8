// The ring of stages as the multiplying warps see it.
#pragma once

#include "layout.cuh"

// A stage is given back to all blocks that copy into it.
DEV void give_back(uint32_t empty) {
  const int lane = thread_index() % 32;
  if (lane < TEAM) team_arrive(empty, lane);
}
