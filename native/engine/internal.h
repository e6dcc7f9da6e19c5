/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the engine's files share: a loaded snapshot as typed arrays. Everything here was checked by the loader, so
 * readers index without looking back.
 */
#ifndef IDMESH_ENGINE_INTERNAL_H
#define IDMESH_ENGINE_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "idmesh/engine.h"
#include "idmesh/matcher.h"

// Longest probe run a hash table of a snapshot may need: bounds the work of a lookup and of the loader.
#define IDM_PROBE_LIMIT 1024
#define IDM_TIERS 4

struct idm_identities {
	const struct idm_identities_meta *meta;
	const struct idm_identity *identities;
	const struct idm_string *labels;
	const struct idm_named_port *named;
	const struct idm_endpoint *endpoints;
	const struct idm_host *hosts;
	const struct idm_range4 *ranges4;
	const struct idm_range6 *ranges6;
	const char *strings;
	uint32_t identity_count, label_count, named_count, endpoint_count, host_count, range4_count, range6_count;
	uint32_t string_size;
};

struct idm_selectors {
	const struct idm_selector *selectors;
	const struct idm_selected *rows;
	const uint32_t *lists;
	const char *strings;
	uint32_t selector_count, row_count, list_count, string_size;
};

struct idm_policies {
	const struct idm_policies_meta *meta;
	const struct idm_subject *subjects;
	const struct idm_policy *policies;
	const struct idm_row *rows;
	const struct idm_span *spans;
	const struct idm_named_span *named;
	const uint32_t *refs;
	const struct idm_entry *entries;
	const uint32_t *origins;
	const struct idm_rule *rules;
	const struct idm_http_set *http_sets;
	const struct idm_http_dim *http_dims;
	const struct idm_http_slot *http_slots;
	const uint32_t *http_group_refs;
	const struct idm_http_group *http_groups;
	const struct idm_header_predicate *http_predicates;
	const struct idm_http_rule *http_rules;
	const struct idm_kafka_set *kafka_sets;
	const struct idm_kafka_rule *kafka_rules;
	const struct idm_dns_set *dns_sets;
	const struct idm_matcher_ref *matchers;
	const char *automata;
	const char *strings;
	uint32_t subject_count, policy_count, row_count, span_count, named_count, ref_count, entry_count, origin_count,
		rule_count, http_set_count, http_dim_count, http_slot_count, http_group_ref_count, http_group_count,
		http_predicate_count, http_rule_count, kafka_set_count, kafka_rule_count, dns_set_count, matcher_count;
	uint64_t automata_size;
	uint32_t string_size;
	// Found while checking.
	uint32_t selector_bound; // selectors are numbered below this
	bool has_pass;           // some entry passes: the walk needs floors
	bool has_auth;           // some entry has an explicit mode: inheritance may matter
	uint8_t *http_reads;     // per HTTP set: some rule looks at headers; owned by the table
	struct idm_kept *kept;   // what flow records keep of them (kept.h), or NULL; owned by the table
};

/* One table in private memory, shared by the snapshots that hold equal bytes. */
struct idm_table {
	atomic_uint refs;
	uint32_t kind;
	uint32_t crc32;
	uint64_t size;
	uint8_t digest[32];
	uint8_t *data; // 64-byte aligned
	union {
		struct idm_identities identities;
		struct idm_selectors selectors;
		struct idm_policies policies;
	};
};

struct idm_snapshot {
	atomic_uint refs;
	uint64_t revision;
	uint64_t domain;
	uint8_t digest[32];
	struct idm_table *tables[IDM_TABLE_COUNT]; // by kind - 1
};

static inline const struct idm_identities *idm_identities(const struct idm_snapshot *snapshot)
{
	return &snapshot->tables[IDM_TABLE_IDENTITIES - 1]->identities;
}

static inline const struct idm_selectors *idm_selectors(const struct idm_snapshot *snapshot)
{
	return &snapshot->tables[IDM_TABLE_SELECTORS - 1]->selectors;
}

static inline const struct idm_policies *idm_policies(const struct idm_snapshot *snapshot)
{
	return &snapshot->tables[IDM_TABLE_POLICIES - 1]->policies;
}

static inline struct idm_bytes idm_text(const char *strings, struct idm_string string)
{
	return (struct idm_bytes){.ptr = strings + string.offset, .size = string.size};
}

static inline const struct idm_matcher *idm_matcher_at(const struct idm_policies *policies, uint32_t index)
{
	return (const void *)(policies->automata + policies->matchers[index].offset);
}

static inline bool idm_matches(const struct idm_policies *policies, uint32_t index, struct idm_bytes text)
{
	return idm_matcher_match(idm_matcher_at(policies, index), text.ptr, text.size) != IDM_NONE;
}

static inline char idm_lower(char c)
{
	return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
}

static inline bool idm_bytes_equal(struct idm_bytes a, struct idm_bytes b)
{
	return a.size == b.size && (!a.size || memcmp(a.ptr, b.ptr, a.size) == 0);
}

/* Index of an identity in IDENTITIES, or IDM_NONE. */
uint32_t idm_identity_find(const struct idm_identities *identities, uint32_t id);

#endif
