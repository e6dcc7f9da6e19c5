// SPDX-License-Identifier: Apache-2.0
// Small loops ([0-9]+, [^/]*, and the bytes of longer characters in them). Their tables depend only on the class,
// not on the pattern around it, so equal ones are shared: a few tables stay in the first cache.
#include "loop.h"

#include <string.h>

#include "idmesh/automaton.h"
#include "idmesh/snapshot.h"
#include "scan.h"

// Each takes 2 KiB; policies name few different classes.
#define TABLES_MAX 64u

struct order {
	uint32_t states[IDM_LOOP_MEMBERS];
	uint32_t count;
};

static uint32_t position(const struct order *order, uint32_t state)
{
	uint32_t at = 0;

	while (at < order->count && order->states[at] != state)
		at++;
	return at;
}

// Members as they are met from the first, so that equal loops number theirs equally.
static void find_order(struct writer *w, uint32_t part, struct order *ret)
{
	ret->count = 1;
	ret->states[0] = w->scc.members[w->scc.first[part]];
	for (uint32_t at = 0; at < ret->count; at++) {
		const struct dfa_state *state = &w->dfa->states.at[ret->states[at]];

		for (uint32_t i = 0; i < state->move_count; i++) {
			uint32_t target = w->dfa->moves.at[state->first_move + i].target;

			if (!(target & DFA_REST) && w->scc.part_of[target] == part && position(ret, target) == ret->count)
				ret->states[ret->count++] = target;
		}
	}
}

static void fill_table(struct writer *w, uint32_t part, const struct order *order, uint64_t *table)
{
	for (uint32_t byte = 0; byte < 256; byte++) {
		table[byte] = (uint64_t)IDM_LOOP_OUT << IDM_LOOP_OUT;
		for (uint32_t m = 0; m < IDM_LOOP_MEMBERS; m++) {
			uint64_t to = IDM_LOOP_OUT;

			if (m < order->count) {
				uint32_t target = dfa_target(w->dfa, order->states[m], w->dfa->map[byte]);

				if (!(target & DFA_REST) && w->scc.part_of[target] == part)
					to = 6 * position(order, target);
			}
			table[byte] |= to << (6 * m);
		}
	}
}

// Offset of the table, perhaps of an equal one; 0 if there are too many.
static uint32_t place_table(struct blob *blob, const uint64_t *table)
{
	uint32_t offset;

	for (size_t i = 0; i < blob->tables.count; i++) {
		if (!memcmp(blob_at(blob, blob->tables.at[i]), table, 2048))
			return blob->tables.at[i];
	}
	if (blob->tables.count == TABLES_MAX)
		return 0;
	offset = blob_add(blob, 2048, 64);
	memcpy(blob_at(blob, offset), table, 2048);
	*VEC_ADD(blob->pool, blob->tables) = offset;
	return offset;
}

static uint32_t write_members(struct writer *w, const struct order *order)
{
	struct idm_loop_member members[IDM_LOOP_MEMBERS];
	uint32_t offset;

	for (uint32_t m = 0; m < order->count; m++) {
		members[m].accept = w->dfa->states.at[order->states[m]].accept;
		members[m].exit = writer_exits(w, order->states[m]);
	}
	offset = blob_add(w->blob, order->count * sizeof(*members), 8);
	memcpy(blob_at(w->blob, offset), members, order->count * sizeof(*members));
	return offset;
}

bool loop_write(struct writer *w, uint32_t part, bool *lanes)
{
	uint32_t offset, members, guess, warm = 0;
	uint64_t table[256];
	struct order order;

	if (w->scc.first[part + 1] - w->scc.first[part] > IDM_LOOP_MEMBERS)
		return false;
	find_order(w, part, &order);
	fill_table(w, part, &order, table);
	offset = place_table(w->blob, table);
	if (!offset)
		return false;
	members = write_members(w, &order);
	guess = order.states[0];
	if (order.count > 1)
		warm = scan_prove(w, part, &guess);
	warm = warm <= IDM_LOOP_WARM_MAX ? warm : 0;
	*lanes = warm || order.count == 1;
	for (uint32_t m = 0; m < order.count; m++) {
		uint32_t at = blob_add(w->blob, sizeof(struct idm_loop), 8);

		*(struct idm_loop *)blob_at(w->blob, at) = (struct idm_loop){
			.table = offset, .start = 6 * m, .members = members, .count = order.count,
			.guess = 6 * position(&order, guess), .warm = warm,
		};
		w->entries[order.states[m]] = at | IDM_NODE_LOOP;
	}
	return true;
}
