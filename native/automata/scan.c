// SPDX-License-Identifier: Apache-2.0
// Automata that look for literals anywhere depend only on the last bytes they read. That is proved here by pairs: a
// run that begins in one state, and the true run, in any state between two characters. If within some steps each pair
// either becomes one state or its true run leaves the part, lanes may begin that many bytes early. (A true run that
// leaves the part is another lane's business. One that stays finds a character's start wherever a byte can start one,
// so lanes begin there.)
#include "scan.h"

#include <string.h>

#include "idmesh/automaton.h"

#define PAIRS_MAX (1u << 18)
#define OUTSIDE 0xffffffffu

struct pair {
	uint32_t guess;
	uint32_t truth;
};

struct pairs {
	struct pair *at;
	size_t count;
	size_t room;
};

struct proof {
	struct writer *w;
	uint32_t first; // member states are numbered from here in scc.members
	uint32_t count;
	uint32_t *table; // by member and class: member, or OUTSIDE
	struct pairs pairs;
	struct pairs next;
	struct pairs turn;
	uint32_t *slots; // of next: index + 1
	uint32_t slot_count;
	bool failed;
};

static void fill_table(struct proof *proof, uint32_t part)
{
	struct writer *w = proof->w;
	uint32_t *member_of = pool_alloc(w->dfa->pool, w->dfa->states.count * sizeof(*member_of));

	for (uint32_t i = 0; i < proof->count; i++)
		member_of[w->scc.members[proof->first + i]] = i;
	for (uint32_t i = 0; i < proof->count; i++) {
		uint32_t *row = proof->table + (size_t)i * w->dfa->classes;

		for (uint32_t class = 0; class < w->dfa->classes; class++) {
			uint32_t target = dfa_target(w->dfa, w->scc.members[proof->first + i], class);

			row[class] = target & DFA_REST || w->scc.part_of[target] != part ? OUTSIDE : member_of[target];
		}
	}
	pool_free(w->dfa->pool, member_of, w->dfa->states.count * sizeof(*member_of));
}

// Between two characters, a state takes some byte of ASCII.
static bool is_between(const struct proof *proof, uint32_t member)
{
	const uint32_t *row = proof->table + (size_t)member * proof->w->dfa->classes;

	for (int byte = 0; byte < 128; byte++) {
		if (row[proof->w->dfa->map[byte]] != OUTSIDE)
			return true;
	}
	return false;
}

static void add_pair(struct proof *proof, uint32_t guess, uint32_t truth)
{
	uint32_t slot = (guess * 0x9e3779b1u ^ truth * 0x85ebca6bu) >> 7;

	for (;; slot++) {
		uint32_t *at = &proof->slots[slot & (proof->slot_count - 1)];

		if (*at) {
			const struct pair *old = &proof->next.at[*at - 1];

			if (old->guess == guess && old->truth == truth)
				return;
			continue;
		}
		if (proof->next.count * 2 >= proof->slot_count) {
			proof->failed = true;
			return;
		}
		*VEC_ADD(proof->w->dfa->pool, proof->next) = (struct pair){.guess = guess, .truth = truth};
		*at = (uint32_t)proof->next.count;
		return;
	}
}

static void advance(struct proof *proof)
{
	uint32_t classes = proof->w->dfa->classes;

	proof->next.count = 0;
	memset(proof->slots, 0, proof->slot_count * sizeof(*proof->slots));
	for (size_t i = 0; i < proof->pairs.count && !proof->failed; i++) {
		const uint32_t *guess = proof->table + (size_t)proof->pairs.at[i].guess * classes;
		const uint32_t *truth = proof->table + (size_t)proof->pairs.at[i].truth * classes;

		for (uint32_t class = 0; class < classes; class++) {
			if (truth[class] == OUTSIDE || truth[class] == guess[class])
				continue;
			if (guess[class] == OUTSIDE)
				proof->failed = true;
			else
				add_pair(proof, guess[class], truth[class]);
		}
	}
}

// Steps after which a run from member is the true one, or 0 if that cannot be shown.
static uint32_t warm_of(struct proof *proof, uint32_t member)
{
	proof->failed = false;
	proof->pairs.count = 0;
	for (uint32_t i = 0; i < proof->count; i++) {
		if (i != member && is_between(proof, i))
			*VEC_ADD(proof->w->dfa->pool, proof->pairs) = (struct pair){.guess = member, .truth = i};
	}
	for (uint32_t step = 1; step <= IDM_SCAN_WARM_MAX; step++) {
		advance(proof);
		if (proof->failed)
			return 0;
		if (!proof->next.count)
			return step;
		proof->turn = proof->pairs;
		proof->pairs = proof->next;
		proof->next = proof->turn;
	}
	return 0;
}

// The member most moves lead to: for literals that is where none has begun.
static uint32_t find_root(const struct proof *proof)
{
	uint32_t classes = proof->w->dfa->classes, best = 0;
	uint32_t *entered = pool_alloc(proof->w->dfa->pool, proof->count * sizeof(*entered));

	for (size_t i = 0; i < (size_t)proof->count * classes; i++) {
		if (proof->table[i] != OUTSIDE)
			entered[proof->table[i]]++;
	}
	for (uint32_t i = 1; i < proof->count; i++) {
		if (entered[i] > entered[best])
			best = i;
	}
	pool_free(proof->w->dfa->pool, entered, proof->count * sizeof(*entered));
	return best;
}

static void mark_entry(struct writer *w, uint32_t part, uint32_t target, uint8_t *entered)
{
	if (!(target & DFA_REST) && w->scc.part_of[target] == part)
		entered[target] = 1;
}

// Moves from outside the part enter it through scans.
static void write_scans(struct writer *w, uint32_t part, uint32_t guess, uint32_t warm)
{
	uint8_t *entered = pool_alloc(w->dfa->pool, w->dfa->states.count);

	mark_entry(w, part, w->dfa->start, entered);
	for (uint32_t state = 0; state < w->dfa->states.count; state++) {
		const struct dfa_state *at = &w->dfa->states.at[state];

		for (uint32_t i = 0; w->scc.part_of[state] != part && i < at->move_count; i++)
			mark_entry(w, part, w->dfa->moves.at[at->first_move + i].target, entered);
	}
	for (uint32_t state = 0; state < w->dfa->states.count; state++) {
		uint32_t offset;

		if (!entered[state])
			continue;
		offset = blob_add(w->blob, sizeof(struct idm_scan), 8);
		*(struct idm_scan *)blob_at(w->blob, offset) =
			(struct idm_scan){.row = w->entries[state], .guess = guess, .warm = warm};
		w->entries[state] = offset | IDM_NODE_SCAN;
	}
	pool_free(w->dfa->pool, entered, w->dfa->states.count);
}

uint32_t scan_prove(struct writer *w, uint32_t part, uint32_t *guess)
{
	struct proof proof = {.w = w, .first = w->scc.first[part]};
	uint32_t root, warm;
	size_t size;

	proof.count = w->scc.first[part + 1] - proof.first;
	size = (size_t)proof.count * w->dfa->classes * sizeof(*proof.table);
	proof.table = pool_alloc(w->dfa->pool, size);
	for (proof.slot_count = 64; proof.slot_count < PAIRS_MAX && proof.slot_count < proof.count * 16;)
		proof.slot_count *= 2;
	proof.slots = pool_alloc(w->dfa->pool, proof.slot_count * sizeof(*proof.slots));
	fill_table(&proof, part);
	root = find_root(&proof);
	warm = is_between(&proof, root) ? warm_of(&proof, root) : 0;
	*guess = w->scc.members[proof.first + root];
	pool_free(w->dfa->pool, proof.table, size);
	pool_free(w->dfa->pool, proof.slots, proof.slot_count * sizeof(*proof.slots));
	VEC_DEINIT(w->dfa->pool, proof.pairs);
	VEC_DEINIT(w->dfa->pool, proof.next);
	return warm;
}

bool scan_write(struct writer *w, uint32_t part)
{
	uint32_t guess, warm = scan_prove(w, part, &guess);

	if (warm)
		write_scans(w, part, w->entries[guess], warm);
	return warm;
}
