// SPDX-License-Identifier: Apache-2.0
// The module's flow records without Envoy, under sanitizers: what stands in them for decisions that are hard to bring
// about, and which threads have a ring.

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "record.h"

#define CHECK(condition)                                                   \
	do {                                                               \
		if (!(condition)) {                                        \
			fprintf(stderr, "%d: %s\n", __LINE__, #condition); \
			exit(1);                                           \
		}                                                          \
	} while (0)

static struct idm_ring_view *view;

// The one record that is there.
static struct idm_flow_record next_record(void)
{
	struct idm_flow_record ret;
	char *room = malloc(IDM_RECORD_MAX);

	CHECK(idm_ring_take(view, room, IDM_RECORD_MAX) >= (int64_t)sizeof(ret));
	memcpy(&ret, room, sizeof(ret));
	CHECK(!idm_ring_take(view, room, IDM_RECORD_MAX));
	free(room);
	return ret;
}

static struct decision decided(uint8_t egress, uint8_t ingress)
{
	struct decision decision;

	decision_init(&decision);
	memset(decision.verdicts, 0, sizeof(decision.verdicts));
	decision.verdicts[0] = (struct idm_verdict){.verdict = egress, .entry = 5, .http_rule = IDM_NONE};
	decision.verdicts[1] = (struct idm_verdict){.verdict = ingress, .entry = 6, .http_rule = 2};
	decision.count = 2;
	decision.direction = IDM_INGRESS;
	decision.allowed = ingress != IDM_DROPPED;
	return decision;
}

static struct idm_flow_record written(const struct decision *decision, uint64_t took_ns, struct record_open *open)
{
	static const uint8_t id[DECISION_ID_BYTES] = "0123456789abcde";
	uint64_t now = rings_clock();
	const struct record record = {
		.type = IDM_FLOW_REQUEST, .asked_ns = now - took_ns, .judged_ns = now, .id = id, .decision = decision,
	};

	record_begin(&record, open);
	record_write(rings_mine(), NULL, &record);
	return next_record();
}

static void test_an_audit_of_either_direction_shows(void)
{
	const struct decision first = decided(IDM_AUDIT, IDM_FORWARDED), last = decided(IDM_FORWARDED, IDM_AUDIT),
			      none = decided(IDM_FORWARDED, IDM_FORWARDED), denied = decided(IDM_AUDIT, IDM_DROPPED);
	struct record_open open;
	struct idm_flow_record found = written(&first, 0, &open);

	CHECK(found.verdict == IDM_AUDIT && found.direction == IDM_EGRESS && open.verdict == IDM_AUDIT);
	CHECK(found.egress_entry == 5 && found.ingress_entry == 6 && found.ingress_rule == 2);
	found = written(&last, 0, &open);
	CHECK(found.verdict == IDM_AUDIT && found.direction == IDM_INGRESS);
	found = written(&none, 0, &open);
	CHECK(found.verdict == IDM_FORWARDED && found.direction == IDM_INGRESS);
	found = written(&denied, 0, &open);
	CHECK(found.verdict == IDM_DROPPED && found.direction == IDM_INGRESS);
}

static void test_times_do_not_wrap(void)
{
	const struct decision decision = decided(IDM_FORWARDED, IDM_FORWARDED);
	struct record_open open;

	CHECK(written(&decision, 1234, &open).decision_ns == 1234);
	CHECK(written(&decision, UINT64_C(1) << 40, &open).decision_ns == UINT32_MAX);
}

static void test_an_end_comes_once(void)
{
	const struct decision decision = decided(IDM_FORWARDED, IDM_FORWARDED);
	struct record_open open;
	struct idm_flow_record begun = written(&decision, 0, &open), end;
	uint64_t before = idm_ring_written(rings_mine()) + 1;

	record_end(rings_mine(), IDM_FLOW_RESPONSE, 200, IDM_RECORD_GRPC, &open);
	end = next_record();
	CHECK(end.type == IDM_FLOW_RESPONSE && end.code == 200 && end.flags == IDM_RECORD_GRPC);
	CHECK(!memcmp(end.decision, begun.decision, sizeof(end.decision)) && end.latency_ns);
	record_end(rings_mine(), IDM_FLOW_RESPONSE, 200, 0, &open);
	record_end(rings_mine(), IDM_FLOW_RESPONSE, 200, 0, &(struct record_open){0});
	CHECK(idm_ring_view_written(view) == idm_ring_written(rings_mine()) && idm_ring_written(rings_mine()) == before);
}

static void *ring_of_thread(void *unused)
{
	(void)unused;
	CHECK(rings_mine() == rings_mine());
	return rings_mine();
}

static struct idm_ring *another_thread(void)
{
	pthread_t thread;
	void *found;

	CHECK(!pthread_create(&thread, NULL, ring_of_thread, NULL) && !pthread_join(thread, &found));
	return found;
}

static void test_each_thread_has_a_ring_until_there_are_no_more(void)
{
	struct idm_ring *own = rings_mine(), *second = another_thread();

	CHECK(own && second && own != second);
	CHECK(!another_thread() && !another_thread());
	CHECK(rings_mine() == own);
}

int main(void)
{
	uint64_t written, lost;

	CHECK(!rings_count(&written, &lost) && !written && !lost);
	CHECK(!rings_offer("nowhere"));
	CHECK(!rings_create(7, 2));
	CHECK(rings_create(IDM_RING_MIN, 2));
	CHECK(!idm_ring_open(idm_ring_fd(rings_mine()), &view));
	test_an_audit_of_either_direction_shows();
	test_times_do_not_wrap();
	test_an_end_comes_once();
	test_each_thread_has_a_ring_until_there_are_no_more();
	CHECK(rings_count(&written, &lost) && written == 8 && !lost);
	return 0;
}
