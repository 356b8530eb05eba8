// How many blocks share the copies of weights.
#pragma once

#ifndef THERMOE_PAIR
#define THERMOE_PAIR 1  // two blocks take neighbouring tiles of an expert and bring each other half of the weights
#endif

#ifndef THERMOE_KEEP
#define THERMOE_KEEP 0  // what the L2 cache is told: 1: weights go first, 2: outputs go first
#endif

#define THERMOE_CLUSTER (THERMOE_PAIR + 1)
constexpr int TEAM = THERMOE_CLUSTER;  // blocks of a cluster, which reach each other's shared memory
