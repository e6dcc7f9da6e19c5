// SPDX-License-Identifier: Apache-2.0
// From the kernel's events to flow records. Both carry ids; only the clock, the form of addresses and the decision id
// differ.

#include <stdbool.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "idmesh/datapath.h"
#include "idmesh/events.h"

#define IDS 64

// Decision ids are random; they are fetched many at a time.
struct ids {
	uint8_t bytes[IDS][16];
	size_t left;
};

static void next_id(struct ids *ids, uint8_t *ret)
{
	if (!ids->left) {
		// Without random numbers a record has no id, which readers understand.
		if (getrandom(ids->bytes, sizeof(ids->bytes), 0) != sizeof(ids->bytes))
			memset(ids->bytes, 0, sizeof(ids->bytes));
		ids->left = IDS;
	}
	memcpy(ret, ids->bytes[--ids->left], 16);
}

static int64_t now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static bool is_mapped(const struct idm_address *address)
{
	static const uint8_t prefix[12] = { [10] = 0xff, [11] = 0xff };

	return !memcmp(address->bytes, prefix, sizeof(prefix));
}

static bool is_none(const struct idm_address *address)
{
	static const struct idm_address none;

	return !memcmp(address, &none, sizeof(none));
}

static void put_addresses(struct idm_flow_record *record, const struct idm_event *event)
{
	const struct idm_address *source = &event->source, *destination = &event->destination;

	if (is_none(source) && is_none(destination)) // a foreign ethertype, a frame too short
		return;
	if (is_mapped(source) && is_mapped(destination)) {
		record->family = 4;
		memcpy(record->source_address, source->bytes + 12, 4);
		memcpy(record->destination_address, destination->bytes + 12, 4);
		return;
	}
	record->family = 6;
	memcpy(record->source_address, source->bytes, 16);
	memcpy(record->destination_address, destination->bytes, 16);
}

// In the words of the record: all that a verdict in the kernel has no word for stays 0.
static void put_verdict(struct idm_flow_record *record, const struct idm_event *event)
{
	record->door = IDM_DOOR_BPF;
	record->type = event->type == IDM_EVENT_DROP ? IDM_FLOW_DROP : IDM_FLOW_CONNECTION;
	record->verdict = event->verdict;
	record->direction = event->direction;
	record->drop_reason = event->drop_reason;
	record->dropped_by = event->verdict == IDM_DROPPED ? IDM_STAGE_L4 : 0;
	record->match_type = event->match_type;
	record->l7 = event->l7;
	record->evidence = IDM_EVIDENCE_DATAPATH;
	record->egress_entry = event->egress_entry;
	record->ingress_entry = event->ingress_entry;
	record->egress_rule = IDM_NONE;
	record->ingress_rule = IDM_NONE;
}

static void put_ends(struct idm_flow_record *record, const struct idm_event *event)
{
	record->revision = event->revision;
	record->source_identity = event->source_identity;
	record->destination_identity = event->destination_identity;
	record->source_endpoint = event->source_endpoint;
	record->destination_endpoint = event->destination_endpoint;
	record->source_port = event->source_port;
	record->destination_port = event->destination_port;
	record->protocol = event->protocol;
	put_addresses(record, event);
}

size_t idm_event_size(void)
{
	return sizeof(struct idm_event);
}

size_t idm_events_record(struct idm_ring *ring, const void *events, size_t size)
{
	int64_t since_boot = now_ns(CLOCK_REALTIME) - now_ns(CLOCK_BOOTTIME);
	struct ids ids = { .left = 0 };
	size_t written = 0;

	for (size_t at = 0; at + sizeof(struct idm_event) <= size; at += sizeof(struct idm_event)) {
		struct idm_flow_facts facts = { 0 };
		struct idm_event event;

		memcpy(&event, (const uint8_t *)events + at, sizeof(event));
		put_verdict(&facts.fixed, &event);
		put_ends(&facts.fixed, &event);
		facts.fixed.time_ns = (uint64_t)((int64_t)event.time_ns + since_boot);
		next_id(&ids, facts.fixed.decision);
		written += idm_ring_put(ring, &facts) == 0;
	}
	return written;
}
