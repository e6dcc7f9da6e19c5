/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot becomes a revision in the kernel: expand it, bring the spare slot to it, write one word. Nothing that a
 * program may still read is touched; with any error the word stays as it was.
 */
#include <bpf/bpf.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "engine/internal.h"
#include "expand.h"
#include "internal.h"
#include "prefixes.h"

struct publishing {
	struct idm_datapath *datapath;
	const struct idm_snapshot *snapshot;
	struct idm_datapath_report *report;
	struct idm_datapath_error *err;
	struct idm_expansion expansion;
	struct idm_rows *endpoints, *prefixes, *peers; // references of ours
	uint32_t slot;
};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

// ---- what the slot shall hold ----

static struct idm_address address_of(const struct idm_host *host)
{
	struct idm_address address = {0};

	if (host->family == 6) {
		memcpy(address.bytes, host->address, 16);
		return address;
	}
	address.bytes[10] = address.bytes[11] = 0xff;
	memcpy(address.bytes + 12, host->address, 4);
	return address;
}

static struct idm_endpoint_row row_of(const struct publishing *publishing, const struct idm_host *host,
				      const struct idm_address *address)
{
	const struct idm_identities *table = idm_identities(publishing->snapshot);
	struct idm_endpoint_row row = {
		.identity = host->identity,
		.endpoint = host->endpoint,
		.policy = IDM_NO_INDEX,
		.ifindex = idm_place_of(publishing->datapath, address),
	};

	if (host->endpoint == IDM_NONE)
		return row;
	if (table->endpoints[host->endpoint].flags & IDM_ENDPOINT_LOCAL)
		row.flags = IDM_ENDPOINT_ROW_LOCAL;
	row.policy = publishing->expansion.policies[host->endpoint];
	return row;
}

static bool same_endpoints(const struct publishing *publishing, const uint8_t *digest)
{
	const struct idm_datapath *datapath = publishing->datapath;
	uint32_t count = idm_identities(publishing->snapshot)->endpoint_count;

	return datapath->endpoints && !memcmp(datapath->endpoints_of, digest, 32) &&
	       datapath->endpoint_count == count &&
	       !memcmp(datapath->endpoint_policies, publishing->expansion.policies, count * sizeof(uint32_t));
}

static int make_endpoints(struct publishing *publishing)
{
	const struct idm_identities *table = idm_identities(publishing->snapshot);
	struct idm_rows *rows;
	int r = 0;

	if (same_endpoints(publishing, publishing->snapshot->tables[IDM_TABLE_IDENTITIES - 1]->digest)) {
		publishing->endpoints = idm_rows_ref(publishing->datapath->endpoints);
		return 0;
	}
	rows = idm_rows_create(sizeof(struct idm_address), sizeof(struct idm_endpoint_row));
	if (!rows)
		return -ENOMEM;
	for (uint32_t i = 0; i < table->host_count && !r; i++) {
		const struct idm_host *host = &table->hosts[i];
		struct idm_address address = address_of(host);
		struct idm_endpoint_row row;

		if (!host->family)
			continue;
		row = row_of(publishing, host, &address);
		r = idm_rows_add(rows, &address, &row);
	}
	idm_rows_sort(rows);
	publishing->endpoints = rows;
	return r;
}

static int make_prefixes(struct publishing *publishing)
{
	const struct idm_datapath *datapath = publishing->datapath;
	const struct idm_table *table = publishing->snapshot->tables[IDM_TABLE_IDENTITIES - 1];
	int r;

	if (datapath->prefixes && !memcmp(datapath->prefixes_of, table->digest, 32)) {
		publishing->prefixes = idm_rows_ref(datapath->prefixes);
		return 0;
	}
	publishing->prefixes = idm_rows_create(sizeof(struct idm_prefix_key), sizeof(struct idm_prefix_row));
	if (!publishing->prefixes)
		return -ENOMEM;
	r = idm_prefixes_add(&table->identities, publishing->prefixes);
	idm_rows_sort(publishing->prefixes);
	return r;
}

// Peers as rows, with the places that their lists got.
static int make_peers(struct publishing *publishing)
{
	const struct idm_expansion *expansion = &publishing->expansion;
	int r = 0;

	publishing->peers = idm_rows_create(sizeof(struct idm_peer_key), sizeof(struct idm_ports));
	if (!publishing->peers)
		return -ENOMEM;
	for (uint32_t i = 0; i < expansion->peer_count && !r; i++)
		r = idm_rows_add(publishing->peers, &expansion->peers[i].key,
				 &expansion->lists.lists[expansion->peers[i].list].place);
	idm_rows_sort(publishing->peers);
	return r;
}

// ---- does it fit ----

static int check_room(const struct publishing *publishing, const char *name, uint32_t wanted)
{
	const struct idm_map *map = idm_map_of(publishing->datapath, name, publishing->slot);

	if (wanted <= map->rows)
		return 0;
	return idm_say(publishing->err, -ENOSPC, "map %s: revision %llu needs %u rows, it has %u: the revision before "
		       "stays in force; give it a greater size", name,
		       (unsigned long long)publishing->snapshot->revision, wanted, map->rows);
}

static int check_all(const struct publishing *publishing)
{
	int r = check_room(publishing, "endpoints", publishing->endpoints->count);

	r = r ? r : check_room(publishing, "prefixes", publishing->prefixes->count);
	r = r ? r : check_room(publishing, "sides", publishing->expansion.policy_count * 2);
	return r ? r : check_room(publishing, "peers", publishing->expansion.peer_count);
}

static int check_domain(const struct publishing *publishing)
{
	uint64_t held = publishing->datapath->state.domain, wanted = publishing->snapshot->domain;

	if (!publishing->datapath->state.generation || held == wanted)
		return 0;
	return idm_say(publishing->err, -ESTALE,
		       "the maps hold numbers of identity domain %llx, the snapshot is of domain %llx",
		       (unsigned long long)held, (unsigned long long)wanted);
}

// ---- writing ----

static int write_sides(struct publishing *publishing)
{
	const struct idm_expansion *expansion = &publishing->expansion;
	const struct idm_map *map = idm_map_of(publishing->datapath, "sides", publishing->slot);
	struct idm_side_row *held = publishing->datapath->slots[publishing->slot].sides;

	for (uint32_t i = 0; i < publishing->datapath->sides_max; i++) {
		struct idm_side_row row = {0};

		if (i < expansion->policy_count * 2) {
			row = expansion->sides[i].row;
			row.any = expansion->lists.lists[expansion->sides[i].any].place;
		}
		if (!memcmp(&row, &held[i], sizeof(row)))
			continue;
		if (bpf_map_update_elem(map->fd, &i, &row, BPF_ANY))
			return -errno;
		held[i] = row;
		publishing->report->written++;
	}
	return 0;
}

static int write_rows(struct publishing *publishing, const char *name, struct idm_rows **held, struct idm_rows *wanted)
{
	const struct idm_map *map = idm_map_of(publishing->datapath, name, publishing->slot);
	int r = idm_rows_apply(map->fd, *held, wanted, &publishing->report->written, &publishing->report->deleted);

	if (r)
		return idm_say(publishing->err, r == -E2BIG ? -ENOSPC : r, "map %s: %s; the revision before stays in force",
			       name, idm_meaning(r));
	idm_rows_ref(wanted);
	idm_rows_unref(*held);
	*held = wanted;
	return 0;
}

static int place_lists(struct publishing *publishing)
{
	struct idm_datapath *datapath = publishing->datapath;
	uint32_t rows = publishing->expansion.lists.row_count;
	int r = idm_lists_place(&datapath->lists, publishing->slot, &publishing->expansion.lists,
				&publishing->report->written);

	if (r == -ENOSPC)
		return idm_say(publishing->err, r, "map spans: revision %llu needs %u rows beside those of the revision in "
			       "force, it has %u: the revision before stays in force; give it a greater size",
			       (unsigned long long)publishing->snapshot->revision, rows, datapath->lists.capacity);
	return r ? idm_say(publishing->err, r, "map spans: %s", idm_meaning(r)) : 0;
}

static int write_slot(struct publishing *publishing)
{
	struct idm_slot *held = &publishing->datapath->slots[publishing->slot];
	int r = place_lists(publishing);

	if (r == -ENOSPC)
		return r;
	held->unsure = true;
	r = r ? r : make_peers(publishing);
	r = r ? r : write_rows(publishing, "peers", &held->peers, publishing->peers);
	r = r ? r : write_sides(publishing);
	r = r ? r : write_rows(publishing, "endpoints", &held->endpoints, publishing->endpoints);
	r = r ? r : write_rows(publishing, "prefixes", &held->prefixes, publishing->prefixes);
	held->unsure = r != 0;
	return r;
}

// First what belongs to the spare slot, then the word: two writes, for one write of the whole row is no atomic one.
static int write_word(struct publishing *publishing)
{
	const struct idm_identities_meta *meta = idm_identities(publishing->snapshot)->meta;
	const struct idm_map *map = idm_map_find(publishing->datapath, "state");
	struct idm_state state = publishing->datapath->state;
	uint32_t key = 0, slot = publishing->slot;

	state.domain = publishing->snapshot->domain;
	state.revision[slot] = publishing->snapshot->revision;
	state.world4[slot] = meta->world4;
	state.world6[slot] = meta->world6;
	state.closed[slot] = !!(idm_policies(publishing->snapshot)->meta->flags & IDM_POLICIES_CLOSED);
	if (bpf_map_update_elem(map->fd, &key, &state, BPF_ANY))
		return idm_say(publishing->err, -errno, "map state: %s", idm_meaning(-errno));
	// Never 0, which says that there is nothing yet.
	state.generation = state.generation == UINT32_MAX ? 2 : state.generation + 1;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (bpf_map_update_elem(map->fd, &key, &state, BPF_ANY))
		return idm_say(publishing->err, -errno, "map state: %s", idm_meaning(-errno));
	publishing->datapath->state = state;
	return 0;
}

// ---- the order of it all ----

static int prepare(struct publishing *publishing)
{
	uint64_t start = now_ns();
	int r = idm_expand(publishing->snapshot, &publishing->expansion);

	r = r ? r : make_endpoints(publishing);
	r = r ? r : make_prefixes(publishing);
	publishing->report->compile_ns = now_ns() - start;
	if (r)
		return idm_say(publishing->err, r, "revision %llu cannot be expanded: %s",
			       (unsigned long long)publishing->snapshot->revision, idm_meaning(r));
	return check_all(publishing);
}

// Nobody reads the spare slot any more, and we know what it holds.
static int take_slot(struct publishing *publishing)
{
	struct idm_datapath *datapath = publishing->datapath;
	uint64_t start = now_ns();
	// Before the first word nobody looks at either slot.
	int r = datapath->state.generation ? idm_grace_wait(&datapath->grace) : 0;

	publishing->report->wait_ns = now_ns() - start;
	if (r)
		return idm_say(publishing->err, r, "waiting for running programs: %s", idm_meaning(r));
	if (datapath->slots[0].unsure || datapath->slots[1].unsure)
		return idm_datapath_recover(datapath, publishing->err);
	return 0;
}

static void remember(struct publishing *publishing)
{
	struct idm_datapath *datapath = publishing->datapath;
	const uint8_t *digest = publishing->snapshot->tables[IDM_TABLE_IDENTITIES - 1]->digest;

	idm_rows_unref(datapath->endpoints);
	idm_rows_unref(datapath->prefixes);
	datapath->endpoints = idm_rows_ref(publishing->endpoints);
	datapath->prefixes = idm_rows_ref(publishing->prefixes);
	memcpy(datapath->endpoints_of, digest, 32);
	memcpy(datapath->prefixes_of, digest, 32);
	free(datapath->endpoint_policies);
	datapath->endpoint_policies = publishing->expansion.policies;
	publishing->expansion.policies = NULL;
	datapath->endpoint_count = idm_identities(publishing->snapshot)->endpoint_count;
}

static int write_all(struct publishing *publishing)
{
	struct idm_datapath_report *report = publishing->report;
	uint64_t start = now_ns();
	int r = write_slot(publishing);

	report->write_ns = now_ns() - start;
	start = now_ns();
	r = r ? r : write_word(publishing);
	report->publish_ns = now_ns() - start;
	if (r)
		return r;
	idm_grace_start(&publishing->datapath->grace);
	report->revision = publishing->snapshot->revision;
	report->generation = publishing->datapath->state.generation;
	report->endpoints = publishing->endpoints->count;
	report->prefixes = publishing->prefixes->count;
	report->policies = publishing->expansion.policy_count;
	report->peers = publishing->expansion.peer_count;
	report->spans = publishing->expansion.lists.row_count;
	remember(publishing);
	return 0;
}

int idm_datapath_publish(struct idm_datapath *datapath, struct idm_snapshot *snapshot,
			 struct idm_datapath_report *ret, struct idm_datapath_error *err)
{
	struct idm_datapath_report report = {0};
	struct publishing publishing = {.datapath = datapath, .snapshot = snapshot, .report = &report, .err = err};
	int r;

	if (!datapath->recovered)
		return idm_say(err, -EINVAL, "nothing is loaded");
	publishing.slot = (datapath->state.generation == UINT32_MAX ? 0 : datapath->state.generation + 1) & 1;
	r = check_domain(&publishing);
	r = r ? r : prepare(&publishing);
	r = r ? r : take_slot(&publishing);
	r = r ? r : write_all(&publishing);
	idm_expansion_deinit(&publishing.expansion);
	idm_rows_unref(publishing.endpoints);
	idm_rows_unref(publishing.prefixes);
	idm_rows_unref(publishing.peers);
	if (!r)
		*ret = report;
	return r;
}

int idm_datapath_state(struct idm_datapath *datapath, void *ret, size_t size)
{
	if (size != sizeof(datapath->state))
		return -EINVAL;
	memcpy(ret, &datapath->state, size);
	return 0;
}
