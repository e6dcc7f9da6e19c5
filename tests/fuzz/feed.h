/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flows out of arbitrary bytes: what fuzzers and stress tests ask the engine. Words are often those that rules of
 * the seeds use, so that a flow gets past the first comparison.
 */
#ifndef IDMESH_TESTS_FEED_H
#define IDMESH_TESTS_FEED_H

#include <stdbool.h>
#include <string.h>

#include "idmesh/engine.h"

#define FEED_LINES 8
#define FEED_TOPICS 4

struct feed {
	const uint8_t *data;
	size_t size;
};

struct feed_flow {
	struct idm_flow flow;
	struct idm_header_line lines[FEED_LINES];
	struct idm_bytes topics[FEED_TOPICS];
};

static inline uint32_t feed_number(struct feed *feed, size_t bytes)
{
	uint32_t value = 0;

	for (size_t i = 0; i < bytes && feed->size; i++, feed->data++, feed->size--)
		value = value << 8 | *feed->data;
	return value;
}

// One of the words, or raw bytes of the feed.
static inline struct idm_bytes feed_text(struct feed *feed, const char *const *words, size_t count)
{
	uint32_t choice = feed_number(feed, 1);
	struct idm_bytes raw = {.ptr = (const char *)feed->data};

	if (choice < 128)
		return (struct idm_bytes){.ptr = words[choice % count], .size = strlen(words[choice % count])};
	raw.size = (choice - 128) % 24;
	if (choice == 255)
		raw.size = feed->size;
	if (raw.size > feed->size)
		raw.size = feed->size;
	feed->data += raw.size;
	feed->size -= raw.size;
	return raw;
}
#define FEED_TEXT(feed, words) feed_text(feed, words, sizeof(words) / sizeof((words)[0]))

static inline void feed_http(struct feed *feed, struct feed_flow *ret)
{
	static const char *const methods[] = {"GET", "POST", "PUT", "CONNECT", ""};
	static const char *const hosts[] = {"a.example", "b.example:80", ""};
	static const char *const paths[] = {"/", "/a/b", "/a/../b", "/api/v1/users/7f/orders", "/v1/x", "/a%2fb", "//", "",
					    "*", "/a/..;/b", "/x?y=/../z", "/%", "/%2e%2e/a", "/a/"};
	static const char *const names[] = {"x-env", "X-Env", "x-token", "X-TENANT", "accept", ""};
	static const char *const values[] = {"prod", "dev", "secret", "a,b", "a", "b", ""};
	struct idm_http *http = &ret->flow.http;

	http->method = FEED_TEXT(feed, methods);
	http->path = FEED_TEXT(feed, paths);
	http->host = FEED_TEXT(feed, hosts);
	http->header_count = feed_number(feed, 1) % (FEED_LINES + 1);
	http->headers = ret->lines;
	for (size_t i = 0; i < http->header_count; i++) {
		ret->lines[i].name = FEED_TEXT(feed, names);
		ret->lines[i].value = FEED_TEXT(feed, values);
	}
}

static inline void feed_kafka(struct feed *feed, struct feed_flow *ret)
{
	static const char *const words[] = {"foo", "bar", "c1", ""};
	struct idm_kafka *kafka = &ret->flow.kafka;

	kafka->api_key = (int32_t)feed_number(feed, 1) - 2;
	kafka->api_version = (int32_t)feed_number(feed, 1) % 4;
	kafka->client_id = FEED_TEXT(feed, words);
	kafka->topics = ret->topics;
	kafka->topic_count = feed_number(feed, 1) % (FEED_TOPICS + 1);
	for (size_t i = 0; i < kafka->topic_count; i++)
		ret->topics[i] = FEED_TEXT(feed, words);
}

/* The flow points into ret and into the feed's bytes. */
static inline void feed_next(struct feed *feed, struct feed_flow *ret)
{
	static const uint32_t peers[] = {2, 1000, 1001, 1002, 1, 99};
	static const uint16_t ports[] = {80, 8080, 53, 443, 9092, 0, 8, 1234};
	static const uint8_t protocols[] = {6, 17, 1, 132, 0, 58, 47};
	static const char *const names[] = {"www.example.com", "WWW.Example.com.", "api.example.com", "", "."};
	struct idm_flow *flow = &ret->flow;
	uint32_t choice = feed_number(feed, 1);

	memset(flow, 0, sizeof(*flow));
	flow->direction = choice & 1;
	flow->endpoint = choice & 2 ? IDM_NONE : (choice >> 2) % 6;
	flow->subject_identity = 1000 + (choice >> 5);
	flow->flags = feed_number(feed, 1);
	choice = feed_number(feed, 1);
	flow->peer.identity = choice < 240 ? peers[choice % 6] : feed_number(feed, 4);
	flow->peer.evidence = choice % 7;
	flow->peer.expiry_ms = choice % 3 ? 0 : 1000;
	flow->now_ms = choice % 2 * 2000;
	choice = feed_number(feed, 1);
	flow->protocol = choice < 240 ? protocols[choice % 7] : (uint8_t)feed_number(feed, 1);
	flow->port = choice < 200 ? ports[choice / 7 % 8] : (uint16_t)feed_number(feed, 2);
	if (flow->flags & IDM_FLOW_HTTP)
		feed_http(feed, ret);
	if (flow->flags & IDM_FLOW_DNS)
		flow->dns = FEED_TEXT(feed, names);
	if (flow->flags & IDM_FLOW_SNI)
		flow->sni = FEED_TEXT(feed, names);
	if (flow->flags & IDM_FLOW_KAFKA)
		feed_kafka(feed, ret);
}

/* What every verdict must keep to, whatever the flow. Returns what is wrong, or NULL. */
static inline const char *feed_fault(const struct idm_flow *flow, const struct idm_verdict *verdict)
{
	uint32_t facts = flow->flags & (IDM_FLOW_HTTP | IDM_FLOW_DNS | IDM_FLOW_KAFKA | IDM_FLOW_SNI);
	bool dropped = verdict->verdict == IDM_DROPPED;

	if (verdict->verdict != IDM_FORWARDED && !dropped && verdict->verdict != IDM_AUDIT &&
	    verdict->verdict != IDM_REDIRECTED)
		return "unknown verdict";
	if (dropped != (verdict->dropped_by != IDM_STAGE_NONE))
		return "dropped_by and verdict disagree";
	if (facts && verdict->verdict == IDM_REDIRECTED)
		return "a request was left to a proxy";
	if (!facts != (verdict->at == IDM_AT_NONE))
		return "at without request, or the reverse";
	if (verdict->l4_verdict == IDM_DROPPED && !dropped)
		return "passed what L3/L4 dropped";
	if (!flow->peer.evidence && !dropped)
		return "passed without evidence";
	if (verdict->change_count > IDM_CHANGES_MAX || (dropped && verdict->change_count))
		return "header changes of a dropped request, or too many";
	return NULL;
}

#endif
