/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process's rings of flow records: one for each thread that decides, made before any of them does.
 *
 * They live as long as the process: workers may still write while Envoy shuts down. Nothing about them ever changes a
 * decision: a thread without a ring decides and says nothing.
 */
#ifndef IDMESH_ENVOY_RINGS_H
#define IDMESH_ENVOY_RINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "idmesh/flow.h"

/* Main thread, once. False without memory (errno); then there are no rings. */
bool rings_create(uint32_t data_size, uint32_t count);
/* The calling thread's own, taken at its first call; NULL: it has none. */
struct idm_ring *rings_mine(void);
/* Main thread, each second: hand them over to whoever listens at path. As idm_rings_offer(). */
int rings_offer(const char *path);
/* Main thread. Sums over all rings; false if there are none. */
bool rings_count(uint64_t *written, uint64_t *lost);

/* Nanoseconds of CLOCK_MONOTONIC, and the same moment as unix time (no system call; at most a second old an offset). */
uint64_t rings_clock(void);
uint64_t rings_unix_time(uint64_t clock);

#endif
