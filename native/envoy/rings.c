// SPDX-License-Identifier: Apache-2.0
// Rings are handed out to threads by a counter, for Envoy does not tell us of its workers one by one.

#include "rings.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#define SECOND_NS UINT64_C(1000000000)

static struct idm_ring **rings;
static uint32_t ring_count; // written once, before any worker runs
static uint32_t taken;
static int connection = -1;

static __thread struct idm_ring *mine;
static __thread bool asked;
// Unix time at clock 0 as this thread last saw it, and when that was.
static __thread uint64_t offset_ns, offset_at;

static void destroy(uint32_t count)
{
	int error = errno;

	while (count)
		idm_ring_destroy(rings[--count]);
	free(rings);
	rings = NULL;
	errno = error;
}

bool rings_create(uint32_t data_size, uint32_t count)
{
	rings = calloc(count, sizeof(struct idm_ring *));
	if (!rings)
		return false;
	for (uint32_t i = 0; i < count; i++) {
		rings[i] = idm_ring_create(data_size, IDM_DOOR_MODULE, i);
		if (!rings[i]) {
			destroy(i);
			return false;
		}
	}
	ring_count = count;
	return true;
}

static void take(void)
{
	uint32_t number;

	asked = true;
	if (!ring_count)
		return;
	number = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED);
	if (number < ring_count)
		mine = rings[number];
}

struct idm_ring *rings_mine(void)
{
	if (__builtin_expect(!asked, 0))
		take();
	return mine;
}

int rings_offer(const char *path)
{
	return ring_count ? idm_rings_offer(path, rings, ring_count, &connection) : 0;
}

bool rings_count(uint64_t *written, uint64_t *lost)
{
	*written = *lost = 0;
	for (uint32_t i = 0; i < ring_count; i++) {
		*written += idm_ring_written(rings[i]);
		*lost += idm_ring_lost(rings[i]);
	}
	return ring_count;
}

static uint64_t now(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return (uint64_t)time.tv_sec * SECOND_NS + (uint64_t)time.tv_nsec;
}

uint64_t rings_clock(void)
{
	return now(CLOCK_MONOTONIC);
}

uint64_t rings_unix_time(uint64_t clock)
{
	if (__builtin_expect(!offset_at || clock - offset_at > SECOND_NS, 0)) {
		offset_at = now(CLOCK_MONOTONIC);
		offset_ns = now(CLOCK_REALTIME) - offset_at;
	}
	return clock + offset_ns;
}
