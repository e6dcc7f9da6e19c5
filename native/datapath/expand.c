/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From selectors to identities. For each side: which identities does some row select, and by which rows? Those with
 * equal rows (and port names, on egress) get one answer; all that no row selects share `any`.
 */
#include "expand.h"

#include <errno.h>
#include <stdlib.h>

#include "ask.h"
#include "room.h"
#include "subjects.h"

// Stands for a row in a pair: the identity has port names that rows for any peer may mean.
#define BY_NAME IDM_NONE

// A peer of the side, and one row that selects it.
struct pair {
	uint32_t peer; // index in IDENTITIES
	uint32_t row;
};

struct expanding {
	const struct idm_snapshot *snapshot;
	struct idm_expansion *ret;
	struct idm_inverse inverse;
	struct idm_asking asking;
	struct pair *pairs;
	uint32_t pair_count, pair_room;
	uint32_t *rows; // of the peer at hand
	uint32_t row_count, row_room;
	// The answer that the last peers with the same rows got.
	struct known {
		uint64_t hash; // 0: free
		uint32_t first_pair, pair_count, list;
		uint32_t names; // index of the identity whose names they were, or IDM_NONE
	} *known;
	uint32_t known_room, known_mask;
};

static int add_pair(struct expanding *expanding, uint32_t peer, uint32_t row)
{
	if (idm_make_room((void **)&expanding->pairs, &expanding->pair_room, (uint64_t)expanding->pair_count + 1,
			  sizeof(*expanding->pairs)))
		return -ENOMEM;
	expanding->pairs[expanding->pair_count++] = (struct pair){.peer = peer, .row = row};
	return 0;
}

static int by_peer(const void *left, const void *right)
{
	const struct pair *a = left, *b = right;

	if (a->peer != b->peer)
		return a->peer < b->peer ? -1 : 1;
	return a->row < b->row ? -1 : a->row > b->row;
}

static int add_named_peers(struct expanding *expanding)
{
	const struct idm_policies *policies = idm_policies(expanding->snapshot);
	const struct idm_identities *table = idm_identities(expanding->snapshot);
	const struct idm_side *side = expanding->asking.side;
	int r = 0;

	if (expanding->asking.direction != IDM_EGRESS || side->any_row == IDM_NONE ||
	    !policies->rows[side->any_row].named_count)
		return 0;
	for (uint32_t i = 0; i < table->identity_count && !r; i++) {
		if (table->identities[i].named_count)
			r = add_pair(expanding, i, BY_NAME);
	}
	return r;
}

// Peers of a side that `any` does not answer for, rising.
static int collect_pairs(struct expanding *expanding)
{
	const struct idm_policies *policies = idm_policies(expanding->snapshot);
	const struct idm_side *side = expanding->asking.side;
	int r;

	expanding->pair_count = 0;
	r = add_named_peers(expanding);
	for (uint32_t i = 0; i < side->row_count && !r; i++) {
		uint32_t selector = policies->rows[side->first_row + i].selector, count;
		const uint32_t *peers = idm_inverse_of(&expanding->inverse, selector, &count);

		for (uint32_t k = 0; k < count && !r; k++)
			r = add_pair(expanding, peers[k], side->first_row + i);
	}
	if (!r && expanding->pair_count)
		qsort(expanding->pairs, expanding->pair_count, sizeof(*expanding->pairs), by_peer);
	return r;
}

static void set_names(struct expanding *expanding, uint32_t peer)
{
	const struct idm_identities *table = idm_identities(expanding->snapshot);
	struct idm_asking *asking = &expanding->asking;

	if (asking->direction == IDM_INGRESS) {
		const struct idm_endpoint *endpoint = &table->endpoints[asking->endpoint];

		asking->names = table->named + endpoint->first_named;
		asking->name_count = endpoint->named_count;
	} else if (peer == IDM_NONE) {
		asking->name_count = 0;
	} else {
		asking->names = table->named + table->identities[peer].first_named;
		asking->name_count = table->identities[peer].named_count;
	}
}

// ---- one answer for peers that the same rows select ----

static int known_init(struct expanding *expanding)
{
	uint32_t size = 64;

	while (size < expanding->pair_count * 2ull && size < 1u << 30)
		size *= 2;
	if (size > expanding->known_room) {
		free(expanding->known);
		expanding->known = malloc(size * sizeof(*expanding->known));
		expanding->known_room = expanding->known ? size : 0;
		if (!expanding->known)
			return -ENOMEM;
	}
	expanding->known_mask = size - 1;
	memset(expanding->known, 0, size * sizeof(*expanding->known));
	return 0;
}

static bool same_rows(const struct expanding *expanding, const struct known *known, uint32_t first, uint32_t count)
{
	if (known->pair_count != count)
		return false;
	for (uint32_t i = 0; i < count; i++) {
		if (expanding->pairs[known->first_pair + i].row != expanding->pairs[first + i].row)
			return false;
	}
	return true;
}

static bool same_names(const struct idm_identities *table, uint32_t a, uint32_t b)
{
	if (a == b)
		return true;
	if (a == IDM_NONE || b == IDM_NONE || table->identities[a].named_count != table->identities[b].named_count)
		return false;
	for (uint32_t i = 0; i < table->identities[a].named_count; i++) {
		const struct idm_named_port *left = &table->named[table->identities[a].first_named + i];
		const struct idm_named_port *right = &table->named[table->identities[b].first_named + i];

		if (left->port != right->port || left->protocol != right->protocol ||
		    !idm_bytes_equal(idm_text(table->strings, left->name), idm_text(table->strings, right->name)))
			return false;
	}
	return true;
}

// The slot of these pairs' rows: taken or free.
static struct known *known_slot(struct expanding *expanding, uint32_t first, uint32_t count, uint32_t names,
				uint64_t *hash)
{
	const struct idm_identities *table = idm_identities(expanding->snapshot);
	uint32_t at;

	*hash = count;
	for (uint32_t i = 0; i < count; i++)
		*hash = idm_hash64(*hash, &expanding->pairs[first + i].row, sizeof(uint32_t));
	for (at = (uint32_t)*hash & expanding->known_mask; expanding->known[at].hash;
	     at = (at + 1) & expanding->known_mask) {
		struct known *known = &expanding->known[at];

		if (known->hash == *hash && same_rows(expanding, known, first, count) &&
		    same_names(table, known->names, names))
			break;
	}
	return &expanding->known[at];
}

static int ask(struct expanding *expanding, uint32_t identity, const struct pair *pairs, uint32_t count, uint32_t *ret)
{
	int r;

	expanding->row_count = 0;
	if (idm_make_room((void **)&expanding->rows, &expanding->row_room, count, sizeof(*expanding->rows)))
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++) {
		if (pairs[i].row != BY_NAME)
			expanding->rows[expanding->row_count++] = pairs[i].row;
	}
	r = idm_ask_peer(&expanding->asking, identity, expanding->rows, expanding->row_count);
	if (r)
		return r;
	*ret = idm_wanted_add(&expanding->ret->lists, expanding->asking.spans, expanding->asking.span_count);
	return *ret == IDM_NO_INDEX ? -ENOMEM : 0;
}

static int add_peer(struct expanding *expanding, uint32_t side, uint32_t identity, uint32_t list)
{
	struct idm_expansion *ret = expanding->ret;

	if (idm_make_room((void **)&ret->peers, &ret->peer_room, (uint64_t)ret->peer_count + 1, sizeof(*ret->peers)))
		return -ENOMEM;
	ret->peers[ret->peer_count++] = (struct idm_expanded_peer){.key = {side, identity}, .list = list};
	return 0;
}

static int expand_peer(struct expanding *expanding, uint32_t side, uint32_t first, uint32_t count)
{
	const struct idm_identities *table = idm_identities(expanding->snapshot);
	uint32_t peer = expanding->pairs[first].peer;
	uint32_t names = expanding->asking.direction == IDM_EGRESS && table->identities[peer].named_count ? peer :
													    IDM_NONE;
	struct known *known;
	uint64_t hash;
	int r = 0;

	known = known_slot(expanding, first, count, names, &hash);
	if (!known->hash) {
		uint32_t list;

		set_names(expanding, peer);
		r = ask(expanding, table->identities[peer].id, expanding->pairs + first, count, &list);
		if (r)
			return r;
		*known = (struct known){hash, first, count, list, names};
	}
	return add_peer(expanding, side, table->identities[peer].id, known->list);
}

// An identity that no pair names, or IDM_NONE: then nobody is left whom `any` could answer for.
static uint32_t find_other(const struct expanding *expanding)
{
	const struct idm_identities *table = idm_identities(expanding->snapshot);
	uint32_t next = 0;

	for (uint32_t i = 0; i < expanding->pair_count && expanding->pairs[i].peer <= next; i++)
		next = expanding->pairs[i].peer + 1;
	return next < table->identity_count ? next : IDM_NONE;
}

static int expand_any(struct expanding *expanding, uint32_t *ret)
{
	uint32_t other = find_other(expanding);

	if (other == IDM_NONE) {
		*ret = idm_wanted_add(&expanding->ret->lists, NULL, 0);
		return *ret == IDM_NO_INDEX ? -ENOMEM : 0;
	}
	set_names(expanding, IDM_NONE);
	return ask(expanding, idm_identities(expanding->snapshot)->identities[other].id, NULL, 0, ret);
}

// Addresses whose identity the snapshot does not know are denied by the engine (171): they must not find `any`.
static int expand_strangers(struct expanding *expanding, uint32_t side)
{
	int r = 0;

	for (uint32_t i = 0; i < expanding->inverse.stranger_count && !r; i++) {
		uint32_t list;

		set_names(expanding, IDM_NONE);
		r = ask(expanding, expanding->inverse.strangers[i], NULL, 0, &list);
		r = r ? r : add_peer(expanding, side, expanding->inverse.strangers[i], list);
	}
	return r;
}

// ---- sides ----

static uint32_t flags_of(const struct expanding *expanding)
{
	const struct idm_side *side = expanding->asking.side;

	// With strangers about nothing is open or closed to all alike: the lists say it then.
	if (expanding->inverse.stranger_count)
		return IDM_SIDE_ROW_USED;
	if (side->flags & IDM_SIDE_ISOLATED)
		return IDM_SIDE_ROW_USED | IDM_SIDE_ROW_ISOLATED;
	return IDM_SIDE_ROW_USED | (side->flags & IDM_SIDE_ENFORCED ? 0 : IDM_SIDE_ROW_OPEN);
}

static void set_miss(struct expanding *expanding)
{
	const struct idm_endpoint *endpoint =
		&idm_identities(expanding->snapshot)->endpoints[expanding->asking.endpoint];
	const struct idm_side *side = expanding->asking.side;
	bool audit = side->flags & IDM_SIDE_AUDIT || endpoint->flags & IDM_ENDPOINT_AUDIT;

	// An isolated side stays closed in audit, too; one that is not enforced has no misses.
	audit &= side->flags & IDM_SIDE_ENFORCED && !(side->flags & IDM_SIDE_ISOLATED);
	expanding->asking.miss = (struct idm_span_row){
		.verdict = audit ? IDM_AUDIT : IDM_DROPPED,
		.drop_reason = IDM_DROP_POLICY_DENIED,
		.entry = IDM_NO_INDEX,
	};
}

static int expand_side(struct expanding *expanding, uint32_t side)
{
	struct idm_expanded_side *ret = &expanding->ret->sides[side];
	int r;

	set_miss(expanding);
	ret->row = (struct idm_side_row){
		.flags = flags_of(expanding),
		.miss_verdict = expanding->asking.miss.verdict,
		.miss_drop = expanding->asking.miss.drop_reason,
	};
	if (ret->row.flags & (IDM_SIDE_ROW_OPEN | IDM_SIDE_ROW_ISOLATED)) {
		ret->any = idm_wanted_add(&expanding->ret->lists, NULL, 0);
		return ret->any == IDM_NO_INDEX ? -ENOMEM : 0;
	}
	r = collect_pairs(expanding);
	r = r ? r : known_init(expanding);
	for (uint32_t i = 0, end; i < expanding->pair_count && !r; i = end) {
		for (end = i; end < expanding->pair_count && expanding->pairs[end].peer == expanding->pairs[i].peer;)
			end++;
		r = expand_peer(expanding, side, i, end - i);
	}
	r = r ? r : expand_any(expanding, &ret->any);
	return r ? r : expand_strangers(expanding, side);
}

static int expand_policies(struct expanding *expanding, const struct idm_subjects *subjects)
{
	const struct idm_policies *policies = idm_policies(expanding->snapshot);
	struct idm_expansion *ret = expanding->ret;
	int r = 0;

	ret->policy_count = subjects->count;
	ret->sides = calloc((size_t)subjects->count * 2 + 1, sizeof(*ret->sides));
	if (!ret->sides)
		return -ENOMEM;
	for (uint32_t i = 0; i < subjects->count * 2 && !r; i++) {
		expanding->asking.endpoint = subjects->items[i / 2].endpoint;
		expanding->asking.direction = i % 2;
		expanding->asking.side = &policies->policies[subjects->items[i / 2].policy].side[i % 2];
		r = expand_side(expanding, i);
	}
	return r;
}

int idm_expand(const struct idm_snapshot *snapshot, struct idm_expansion *ret)
{
	struct expanding expanding = {.snapshot = snapshot, .ret = ret, .asking = {.snapshot = snapshot}};
	struct idm_subjects subjects = {0};
	int r;

	*ret = (struct idm_expansion){0};
	r = idm_subjects_init(&subjects, snapshot);
	ret->policies = subjects.numbers;
	r = r ? r : idm_inverse_init(&expanding.inverse, snapshot);
	// A closed snapshot denies everything by one word: no list is ever read.
	if (!r && !(idm_policies(snapshot)->meta->flags & IDM_POLICIES_CLOSED))
		r = expand_policies(&expanding, &subjects);
	idm_inverse_deinit(&expanding.inverse);
	idm_asking_deinit(&expanding.asking);
	free(subjects.items);
	free(expanding.pairs);
	free(expanding.rows);
	free(expanding.known);
	if (r)
		idm_expansion_deinit(ret);
	return r;
}

void idm_expansion_deinit(struct idm_expansion *expansion)
{
	free(expansion->policies);
	free(expansion->sides);
	free(expansion->peers);
	idm_wanted_deinit(&expansion->lists);
	*expansion = (struct idm_expansion){0};
}
