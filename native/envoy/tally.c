// SPDX-License-Identifier: Apache-2.0
// A place for each thread, a cache line of its own; should there be more threads than places, some share one.

#include "tally.h"

#include <stdatomic.h>

#define PLACES 128

enum outcome { ALLOWED, AUDIT, DENIED, ERROR, OUTCOMES };

struct place {
	_Alignas(64) atomic_uint_fast64_t counts[OUTCOMES];
};

static struct place places[PLACES];
static atomic_uint taken;
static __thread struct place *mine;

static enum outcome outcome_of(const struct decision *decision)
{
	if (decision->error)
		return ERROR;
	if (!decision->allowed)
		return DENIED;
	return decision_last(decision)->verdict == IDM_AUDIT ? AUDIT : ALLOWED;
}

void tally_add(const struct decision *decision)
{
	if (!mine)
		mine = &places[atomic_fetch_add_explicit(&taken, 1, memory_order_relaxed) % PLACES];
	atomic_fetch_add_explicit(&mine->counts[outcome_of(decision)], 1, memory_order_relaxed);
}

static uint64_t sum(enum outcome outcome)
{
	uint64_t ret = 0;

	for (int i = 0; i < PLACES; i++)
		ret += atomic_load_explicit(&places[i].counts[outcome], memory_order_relaxed);
	return ret;
}

void tally_sum(struct tally *ret)
{
	uint64_t error = sum(ERROR);

	*ret = (struct tally){ sum(ALLOWED), sum(AUDIT), sum(DENIED) + error, error };
}
