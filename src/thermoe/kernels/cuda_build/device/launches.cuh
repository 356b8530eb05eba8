// Launches that overlap (programmatic dependent launch).
#pragma once

#include "base.cuh"

// The launch before this one has ended, and what it wrote is seen.
DEV void wait_for_launch_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEV void let_next_launch_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
