// SPDX-License-Identifier: Apache-2.0
// Counting a record costs less than formatting it by far, so everything is counted and only what is asked for is
// formatted.

#include "idmesh/counts.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_ICMPV6 58
#define PROTOCOL_SCTP 132

// What has begun and not ended, as far as its end counts with it. Ids are random: they choose their own set.
#define WAYS 8
#define SETS 4096

struct begun {
	uint64_t age; // 0: free
	uint8_t decision[16];
	uint16_t drop_reason;
	uint8_t protocol;
	uint8_t direction;
	uint8_t method;  // columns
	uint8_t version;
};

struct idm_counter {
	struct idm_counts counts;
	uint64_t clock;
	struct begun begun[SETS][WAYS];
};

struct idm_counter *idm_counter_create(void)
{
	return calloc(1, sizeof(struct idm_counter));
}

void idm_counter_destroy(struct idm_counter *counter)
{
	free(counter);
}

const struct idm_counts *idm_counter_counts(const struct idm_counter *counter)
{
	return &counter->counts;
}

// The only writer adds; readers see a whole number.
static void count(uint64_t *place, uint64_t by)
{
	__atomic_store_n(place, *place + by, __ATOMIC_RELAXED);
}

// --- columns ---

static const char *const methods[IDM_COUNT_METHODS] = {"", "CONNECT", "DELETE", "GET",  "HEAD",
						       "OPTIONS", "PATCH", "POST", "PUT", "TRACE"};
static const char *const versions[] = {"", "HTTP/1.0", "HTTP/1.1", "HTTP/2", "HTTP/3", "HTTP/2.0", "HTTP/3.0"};

static uint8_t column_of(const char *text, size_t size, const char *const *names, unsigned int name_count)
{
	for (unsigned int i = 1; i < name_count; i++)
		if (strlen(names[i]) == size && !memcmp(names[i], text, size))
			return (uint8_t)i;
	return 0;
}

static uint8_t version_of(const char *text, size_t size)
{
	uint8_t column = column_of(text, size, versions, sizeof(versions) / sizeof(*versions));

	return column < IDM_COUNT_VERSIONS ? column : (uint8_t)(column - 2);
}

static bool is_l7(const struct idm_flow_record *record)
{
	return record->type == IDM_FLOW_REQUEST || record->type == IDM_FLOW_RESPONSE;
}

static unsigned int protocol_of(uint8_t number)
{
	switch (number) {
	case PROTOCOL_TCP:
		return IDM_COUNT_TCP;
	case PROTOCOL_UDP:
		return IDM_COUNT_UDP;
	case PROTOCOL_SCTP:
		return IDM_COUNT_SCTP;
	case PROTOCOL_ICMP:
		return IDM_COUNT_ICMPV4;
	case PROTOCOL_ICMPV6:
		return IDM_COUNT_ICMPV6;
	default:
		return IDM_COUNT_OTHER;
	}
}

static unsigned int verdict_of(const struct idm_flow_record *record)
{
	switch (record->verdict) {
	case IDM_FORWARDED:
		return IDM_COUNT_FORWARDED;
	case IDM_AUDIT:
		return IDM_COUNT_AUDIT;
	case IDM_REDIRECTED:
		return IDM_COUNT_REDIRECTED;
	}
	if (record->flags & IDM_RECORD_SHADOW)
		return IDM_COUNT_AUDIT;
	return record->flags & IDM_RECORD_ERROR ? IDM_COUNT_ERROR : IDM_COUNT_DROPPED;
}

static unsigned int bucket_of(uint64_t ns)
{
	static const uint32_t limits_us[IDM_COUNT_BUCKETS - 1] = {5000,	  10000,   25000,   50000,   100000,  250000,
								  500000, 1000000, 2500000, 5000000, 10000000};
	unsigned int bucket = 0;

	while (bucket < IDM_COUNT_BUCKETS - 1 && ns > limits_us[bucket] * UINT64_C(1000))
		bucket++;
	return bucket;
}

// --- what has begun ---

static struct begun *set_of(struct idm_counter *counter, const uint8_t decision[16])
{
	uint64_t hash;

	memcpy(&hash, decision, sizeof(hash));
	// Not every producer's ids are random in every byte.
	return counter->begun[(hash * UINT64_C(0x9e3779b97f4a7c15)) >> 52];
}

_Static_assert(SETS == 1 << 12, "set_of() takes the upper 12 bits");

static bool same(const struct begun *begun, const uint8_t decision[16])
{
	return begun->age && !memcmp(begun->decision, decision, sizeof(begun->decision));
}

// A place for it: its own, a free one, or the one that has waited longest.
static struct begun *place_of(struct idm_counter *counter, const uint8_t decision[16])
{
	struct begun *set = set_of(counter, decision), *oldest = set;

	for (unsigned int i = 0; i < WAYS; i++) {
		if (same(&set[i], decision))
			return &set[i];
		if (set[i].age < oldest->age)
			oldest = &set[i];
	}
	return oldest;
}

static bool ends(const struct idm_flow_record *record)
{
	return record->type == IDM_FLOW_RESPONSE || record->type == IDM_FLOW_END;
}

// Whose end will come: ext_authz and the kernel see none, and without random numbers there is no id to know it by.
static bool will_end(const struct idm_flow_record *record)
{
	static const uint8_t none[16];

	return record->verdict != IDM_DROPPED && record->door != IDM_DOOR_EXT_AUTHZ && record->door != IDM_DOOR_BPF &&
	       memcmp(record->decision, none, sizeof(none));
}

static void describe(const struct idm_flow_record *record, const char *texts, struct begun *ret)
{
	const char *protocol = texts + record->method_size + record->host_size + record->path_size;

	ret->drop_reason = record->drop_reason;
	ret->protocol = record->protocol;
	ret->direction = record->direction;
	ret->method = column_of(texts, record->method_size, methods, IDM_COUNT_METHODS);
	ret->version = version_of(protocol, record->protocol_size);
}

// What the record counts with: its own facts, or those of what it ends.
static void begin_or_end(struct idm_counter *counter, const struct idm_flow_record *record, const char *texts,
			 struct begun *ret)
{
	struct begun *place;

	describe(record, texts, ret);
	if (ends(record)) {
		place = place_of(counter, record->decision);
		if (!same(place, record->decision))
			return;
		*ret = *place;
		place->age = 0;
	} else if (will_end(record)) {
		place = place_of(counter, record->decision);
		*place = *ret;
		place->age = ++counter->clock;
		memcpy(place->decision, record->decision, sizeof(place->decision));
	}
}

// --- one record ---

static void count_response(struct idm_counts *counts, const struct idm_flow_record *record, const struct begun *facts)
{
	unsigned int status = record->code >= 100 && record->code <= 599 ? record->code - 99u : 0;

	count(&counts->responses[facts->method][facts->version][status][facts->direction], 1);
	count(&counts->durations[facts->method][facts->direction][bucket_of(record->latency_ns)], 1);
	count(&counts->durations_ns[facts->method][facts->direction], record->latency_ns);
}

static void count_record(struct idm_counts *counts, const struct idm_flow_record *record, const struct begun *facts)
{
	unsigned int protocol = is_l7(record) ? IDM_COUNT_HTTP : protocol_of(facts->protocol);
	unsigned int verdict = verdict_of(record);
	unsigned int reason = facts->drop_reason < IDM_COUNT_REASONS ? facts->drop_reason : IDM_COUNT_REASONS - 1;
	unsigned int match = record->match_type < IDM_COUNT_MATCHES ? record->match_type : IDM_COUNT_MATCHES - 1;

	count(&counts->flows[protocol][record->type][verdict], 1);
	if (verdict == IDM_COUNT_DROPPED || verdict == IDM_COUNT_ERROR)
		count(&counts->drops[reason][protocol], 1);
	if (record->type == IDM_FLOW_RESPONSE)
		count_response(counts, record, facts);
	else if (record->type == IDM_FLOW_CONNECTION)
		count(&counts->connections[record->direction][match][verdict], 1);
}

// A producer's word: every field that chooses a place is looked at.
static bool understood(const struct idm_flow_record *record)
{
	static const uint32_t verdicts = 1u << IDM_FORWARDED | 1u << IDM_DROPPED | 1u << IDM_AUDIT |
					 1u << IDM_REDIRECTED;

	return record->version == IDM_FLOW_VERSION && record->type && record->type < IDM_COUNT_TYPES &&
	       record->door >= IDM_DOOR_MODULE && record->door <= IDM_DOOR_BPF && record->verdict < 32 &&
	       (verdicts >> record->verdict & 1) && (!record->family || record->family == 4 || record->family == 6) &&
	       (record->direction == IDM_INGRESS || record->direction == IDM_EGRESS) &&
	       sizeof(*record) + record->method_size + record->host_size + record->path_size + record->protocol_size <=
		       record->size;
}

size_t idm_counter_add(struct idm_counter *counter, const void *batch, size_t size)
{
	const char *next = batch;
	size_t counted = 0;

	while (size >= sizeof(struct idm_flow_record)) {
		struct idm_flow_record record;
		struct begun facts;

		memcpy(&record, next, sizeof(record));
		if (record.size < sizeof(record) || record.size > size) {
			count(&counter->counts.malformed, 1);
			break;
		}
		if (understood(&record)) {
			begin_or_end(counter, &record, next + sizeof(record), &facts);
			count_record(&counter->counts, &record, &facts);
			counted++;
		} else {
			count(&counter->counts.malformed, 1);
		}
		next += record.size;
		size -= record.size;
	}
	return counted;
}
