// How many blocks share the copies of weights.
#pragma once

#ifndef THERMOE_PAIR
#define THERMOE_PAIR 1  // two blocks take neighbouring tiles of an expert and bring each other half of the weights
#endif

constexpr int TEAM = THERMOE_PAIR ? 2 : 1;  // blocks of a cluster, which reach each other's shared memory
