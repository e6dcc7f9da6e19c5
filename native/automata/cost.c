// SPDX-License-Identifier: Apache-2.0
// A bound, not an estimate: a text passes each part without a cycle at most once, and spends its bytes in the
// slowest part with one that it can still reach. Times were measured by tests/load/bench_matcher.py.
#include "cost.h"

#include <string.h>

#define PASS_PS 25000u      // a node met for the first time, far from the caches
#define LOOP_PS 620u        // a step by shifts
#define ROW_NEAR_PS 1500u   // a step in a table within the first cache
#define ROW_FAR_PS 4400u    // within the second
#define ROW_LOST_PS 20000u  // beyond
#define LANES 4u
#define REST_PS 620u        // reading what ".*" takes
#define NEAR_BYTES (32u << 10)
#define FAR_BYTES (768u << 10)

void cost_init(struct writer *w)
{
	w->costs = pool_alloc(w->dfa->pool, w->scc.count * sizeof(*w->costs));
}

// The dearest of what can follow.
static struct part_cost after(const struct writer *w, uint32_t part)
{
	struct part_cost worst = {.byte_ps = 0};

	for (uint32_t i = w->scc.first[part]; i < w->scc.first[part + 1]; i++) {
		const struct dfa_state *state = &w->dfa->states.at[w->scc.members[i]];

		for (uint32_t m = 0; m < state->move_count; m++) {
			uint32_t target = w->dfa->moves.at[state->first_move + m].target;
			struct part_cost next = {.once_ps = PASS_PS, .byte_ps = REST_PS};

			if (!(target & DFA_REST)) {
				if (w->scc.part_of[target] == part)
					continue;
				next = w->costs[w->scc.part_of[target]];
			}
			if (next.once_ps > worst.once_ps)
				worst.once_ps = next.once_ps;
			if (next.byte_ps > worst.byte_ps)
				worst.byte_ps = next.byte_ps;
		}
	}
	return worst;
}

static void settle(struct writer *w, uint32_t part, uint64_t byte_ps, bool node)
{
	struct part_cost cost = after(w, part);

	cost.once_ps += node ? PASS_PS : 0;
	if (cost.once_ps > (uint64_t)PASS_PS * COST_TEXT)
		cost.once_ps = (uint64_t)PASS_PS * COST_TEXT;
	if (byte_ps > cost.byte_ps)
		cost.byte_ps = byte_ps;
	w->costs[part] = cost;
}

void cost_pass(struct writer *w, uint32_t part)
{
	settle(w, part, 0, !w->inside[w->scc.members[w->scc.first[part]]]);
}

void cost_loop(struct writer *w, uint32_t part)
{
	settle(w, part, LOOP_PS, true);
}

void cost_rows(struct writer *w, uint32_t part, bool lanes)
{
	uint64_t bytes = (uint64_t)(w->scc.first[part + 1] - w->scc.first[part]) * 4 * (w->dfa->classes + 1);
	uint64_t step = bytes <= NEAR_BYTES ? ROW_NEAR_PS : bytes <= FAR_BYTES ? ROW_FAR_PS : ROW_LOST_PS;

	// Lanes first look whether the text is clean.
	settle(w, part, lanes ? step / LANES + REST_PS : step, true);
}

uint64_t cost_worst(const struct writer *w)
{
	struct part_cost cost = {.once_ps = PASS_PS, .byte_ps = REST_PS};

	if (!(w->dfa->start & DFA_REST))
		cost = w->costs[w->scc.part_of[w->dfa->start]];
	return cost.once_ps + cost.byte_ps * COST_TEXT;
}
