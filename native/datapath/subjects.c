/* SPDX-License-Identifier: Apache-2.0 */
/* Turning tables about: endpoints to kernel policies, selectors to identities. */
#include "subjects.h"

#include <errno.h>
#include <stdlib.h>

#include "idmesh/datapath.h"

#define HOST_IDENTITY 1

// ---- kernel policies ----

static uint32_t policy_of(const struct idm_policies *policies, uint32_t identity)
{
	uint32_t low = 0, high = policies->subject_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (policies->subjects[middle].identity < identity)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == policies->subject_count || policies->subjects[low].identity != identity)
		return IDM_NONE;
	return policies->subjects[low].policy;
}

static bool same_names(const struct idm_identities *table, const struct idm_endpoint *a, const struct idm_endpoint *b)
{
	if (a->named_count != b->named_count)
		return false;
	for (uint32_t i = 0; i < a->named_count; i++) {
		const struct idm_named_port *left = &table->named[a->first_named + i];
		const struct idm_named_port *right = &table->named[b->first_named + i];

		if (left->port != right->port || left->protocol != right->protocol ||
		    !idm_bytes_equal(idm_text(table->strings, left->name), idm_text(table->strings, right->name)))
			return false;
	}
	return true;
}

static uint64_t hash_subject(const struct idm_identities *table, const struct idm_endpoint *endpoint, uint32_t policy)
{
	uint64_t hash = idm_hash64(endpoint->flags & IDM_ENDPOINT_AUDIT, &policy, sizeof(policy));

	for (uint32_t i = 0; i < endpoint->named_count; i++) {
		const struct idm_named_port *named = &table->named[endpoint->first_named + i];

		hash = idm_hash64(hash + named->protocol, &named->port, sizeof(named->port));
	}
	return hash;
}

struct numbering {
	struct idm_subjects *ret;
	const struct idm_identities *table;
	uint32_t *slots; // numbers + 1 by hash
	uint32_t mask;
};

static void number(struct numbering *numbering, uint32_t index, uint32_t policy)
{
	const struct idm_identities *table = numbering->table;
	const struct idm_endpoint *endpoint = &table->endpoints[index];
	struct idm_subjects *ret = numbering->ret;
	uint32_t at = (uint32_t)hash_subject(table, endpoint, policy) & numbering->mask;

	for (; numbering->slots[at]; at = (at + 1) & numbering->mask) {
		const struct idm_subject_item *item = &ret->items[numbering->slots[at] - 1];
		const struct idm_endpoint *other = &table->endpoints[item->endpoint];

		if (item->policy == policy && !((other->flags ^ endpoint->flags) & IDM_ENDPOINT_AUDIT) &&
		    same_names(table, other, endpoint))
			break;
	}
	if (!numbering->slots[at]) {
		ret->items[ret->count] = (struct idm_subject_item){policy, index};
		numbering->slots[at] = ++ret->count;
	}
	ret->numbers[index] = numbering->slots[at] - 1;
}

int idm_subjects_init(struct idm_subjects *subjects, const struct idm_snapshot *snapshot)
{
	const struct idm_identities *table = idm_identities(snapshot);
	struct numbering numbering = {.ret = subjects, .table = table, .mask = 1};

	while (numbering.mask < (uint64_t)table->endpoint_count * 2)
		numbering.mask *= 2;
	numbering.slots = calloc(numbering.mask, sizeof(uint32_t));
	numbering.mask--;
	*subjects = (struct idm_subjects){
		.items = calloc((size_t)table->endpoint_count + 1, sizeof(*subjects->items)),
		.numbers = malloc(((size_t)table->endpoint_count + 1) * sizeof(uint32_t)),
	};
	if (!subjects->items || !subjects->numbers || !numbering.slots) {
		free(numbering.slots);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < table->endpoint_count; i++) {
		uint32_t policy = IDM_NONE;

		subjects->numbers[i] = IDM_NO_INDEX;
		if (table->endpoints[i].flags & IDM_ENDPOINT_LOCAL)
			policy = policy_of(idm_policies(snapshot), table->endpoints[i].identity);
		if (policy != IDM_NONE)
			number(&numbering, i, policy);
	}
	free(numbering.slots);
	return 0;
}

// ---- selectors ----

// Each selected identity once, in rising order: index in IDENTITIES, and its selectors.
static void walk_selected(struct idm_inverse *inverse, const struct idm_snapshot *snapshot, bool fill)
{
	const struct idm_selectors *selectors = idm_selectors(snapshot);
	const struct idm_identities *table = idm_identities(snapshot);
	uint32_t index = 0;

	for (uint32_t i = 0; i < selectors->row_count; i++) {
		const struct idm_selected *row = &selectors->rows[i];

		while (index < table->identity_count && table->identities[index].id < row->identity)
			index++;
		if (index == table->identity_count || table->identities[index].id != row->identity)
			continue;
		for (uint32_t k = 0; k < row->count; k++) {
			uint32_t selector = selectors->lists[row->first + k];

			if (fill)
				inverse->peers[inverse->first[selector]++] = index;
			else
				inverse->first[selector + 1]++;
		}
	}
}

static int invert(struct idm_inverse *inverse, const struct idm_snapshot *snapshot)
{
	uint32_t count = idm_selectors(snapshot)->selector_count;

	inverse->selector_count = count;
	inverse->first = calloc((size_t)count + 2, sizeof(uint32_t));
	if (!inverse->first)
		return -ENOMEM;
	walk_selected(inverse, snapshot, false);
	for (uint32_t i = 0; i < count; i++)
		inverse->first[i + 1] += inverse->first[i];
	inverse->peers = malloc(((size_t)inverse->first[count] + 1) * sizeof(uint32_t));
	if (!inverse->peers)
		return -ENOMEM;
	walk_selected(inverse, snapshot, true);
	// Filling moved each start to its end, which is the next one's start.
	memmove(inverse->first + 1, inverse->first, count * sizeof(uint32_t));
	inverse->first[0] = 0;
	return 0;
}

// ---- strangers ----

static int note_stranger(struct idm_inverse *inverse, const struct idm_identities *table, uint32_t identity)
{
	uint32_t *grown;

	if (idm_identity_find(table, identity) != IDM_NONE)
		return 0;
	for (uint32_t i = 0; i < inverse->stranger_count; i++) {
		if (inverse->strangers[i] == identity)
			return 0;
	}
	grown = realloc(inverse->strangers, ((size_t)inverse->stranger_count + 1) * sizeof(uint32_t));
	if (!grown)
		return -ENOMEM;
	inverse->strangers = grown;
	inverse->strangers[inverse->stranger_count++] = identity;
	return 0;
}

static int find_strangers(struct idm_inverse *inverse, const struct idm_identities *table)
{
	int r = note_stranger(inverse, table, HOST_IDENTITY);

	r = r ? r : note_stranger(inverse, table, table->meta->world4);
	r = r ? r : note_stranger(inverse, table, table->meta->world6);
	for (uint32_t i = 0; i < table->host_count && !r; i++) {
		const struct idm_host *host = &table->hosts[i];

		// Endpoints' own identities were checked when the snapshot was loaded.
		if (host->family && (host->endpoint == IDM_NONE ||
				     table->endpoints[host->endpoint].identity != host->identity))
			r = note_stranger(inverse, table, host->identity);
	}
	for (uint32_t i = 0; i < table->range4_count && !r; i++)
		r = note_stranger(inverse, table, table->ranges4[i].identity);
	for (uint32_t i = 0; i < table->range6_count && !r; i++)
		r = note_stranger(inverse, table, table->ranges6[i].identity);
	return r;
}

int idm_inverse_init(struct idm_inverse *inverse, const struct idm_snapshot *snapshot)
{
	int r;

	*inverse = (struct idm_inverse){0};
	r = invert(inverse, snapshot);
	return r ? r : find_strangers(inverse, idm_identities(snapshot));
}

void idm_inverse_deinit(struct idm_inverse *inverse)
{
	free(inverse->first);
	free(inverse->peers);
	free(inverse->strangers);
}
