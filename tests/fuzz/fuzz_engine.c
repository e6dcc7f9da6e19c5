/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arbitrary flows against sound snapshots (folder IDMESH_SEEDS). Besides bad accesses it looks for disagreement: one
 * flow alone, in a batch and explained; a path raw and in canonical form.
 */
#include "feed.h"
#include "seeds.h"

#define SNAPSHOTS_MAX (SEEDS_MAX + 1)

static struct idm_snapshot *snapshots[SNAPSHOTS_MAX];
static uint32_t snapshot_count;

static void add(struct idm_snapshot *snapshot)
{
	snapshots[snapshot_count++] = snapshot;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	seeds_each(add);
	return 0;
}

static struct idm_string put(char *arena, size_t *size, struct idm_bytes text)
{
	struct idm_string string = {.offset = (uint32_t)*size, .size = (uint32_t)text.size};

	if (text.size)
		memcpy(arena + *size, text.ptr, text.size);
	*size += text.size;
	return string;
}

static void check_batch(const struct idm_snapshot *snapshot, const struct idm_flow *flow,
			const struct idm_verdict *verdict)
{
	static char arena[1 << 20];
	struct idm_batch_header headers[FEED_LINES];
	struct idm_batch_verdict ret;
	struct idm_batch_flow batch = {
		.direction = flow->direction, .flags = flow->flags, .endpoint = flow->endpoint,
		.subject_identity = flow->subject_identity, .peer_identity = flow->peer.identity,
		.evidence = flow->peer.evidence, .port = flow->port, .protocol = flow->protocol,
		.header_count = (uint32_t)flow->http.header_count,
	};
	size_t size = 0;

	if (flow->flags & IDM_FLOW_KAFKA || flow->peer.expiry_ms)
		return;
	batch.method = put(arena, &size, flow->http.method);
	batch.path = put(arena, &size, flow->http.path);
	batch.host = put(arena, &size, flow->http.host);
	batch.dns = put(arena, &size, flow->dns);
	batch.sni = put(arena, &size, flow->sni);
	for (size_t i = 0; i < flow->http.header_count; i++) {
		headers[i].name = put(arena, &size, flow->http.headers[i].name);
		headers[i].value = put(arena, &size, flow->http.headers[i].value);
	}
	idm_decide_batch(snapshot, &batch, 1, headers, flow->http.header_count, arena, size, &ret);
	if (ret.verdict != verdict->verdict || ret.entry != verdict->entry || ret.http_rule != verdict->http_rule ||
	    ret.drop_reason != verdict->drop_reason || ret.at != verdict->at)
		fail("batch and single decision differ");
}

static void check_path(const struct idm_snapshot *snapshot, struct idm_flow flow)
{
	static char out[3 << 16], again[9 << 16];
	struct idm_verdict raw, canonical;
	size_t size, size_again;
	int r;

	if (!(flow.flags & IDM_FLOW_HTTP) || !flow.http.path.size || flow.http.path.size > 1 << 16)
		return;
	r = idm_path_canonicalize(flow.http.path, out, &size);
	if (r < 0)
		return;
	if (size > 3 * flow.http.path.size || (r == 1) != (size == flow.http.path.size &&
							   memcmp(out, flow.http.path.ptr, size) == 0))
		fail("canonical path: size or answer is wrong");
	if (idm_path_canonicalize((struct idm_bytes){.ptr = out, .size = size}, again, &size_again) != 1)
		fail("a canonical path is not canonical");
	flow.flags |= IDM_FLOW_RAW_PATH;
	idm_decide(snapshot, &flow, &raw);
	flow.flags &= ~(uint32_t)IDM_FLOW_RAW_PATH;
	flow.http.path = (struct idm_bytes){.ptr = out, .size = size};
	idm_decide(snapshot, &flow, &canonical);
	if (size <= 16384 && raw.verdict != canonical.verdict)
		fail("a raw path and its canonical form are judged differently");
}

// What a flow record keeps of a request is of that request, or hidden.
static void check_kept(const struct idm_snapshot *snapshot, const struct idm_http *http, const struct idm_verdict *verdict)
{
	const uint32_t entries[] = {verdict->l4_entry, verdict->entry, verdict->http_rule, 0};
	struct idm_header_line lines[IDM_KEPT_LINES_MAX];
	int cut;
	size_t count = idm_kept_headers(snapshot, entries, 4, http, lines, &cut);

	if (count > http->header_count)
		fail("more headers are kept than were sent");
	for (size_t i = 0, j = 0; i < count; i++, j++) {
		while (j < http->header_count && http->headers[j].name.ptr != lines[i].name.ptr)
			j++;
		if (j == http->header_count || (lines[i].value.ptr && lines[i].value.ptr != http->headers[j].value.ptr))
			fail("a header was kept that nobody sent");
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct feed feed = {.data = data, .size = size};
	const struct idm_snapshot *snapshot = snapshots[feed_number(&feed, 1) % snapshot_count];

	while (feed.size) {
		struct idm_considered list[64];
		struct idm_verdict verdict, explained;
		struct feed_flow flow;
		size_t count = 64;
		const char *fault;

		feed_next(&feed, &flow);
		idm_decide(snapshot, &flow.flow, &verdict);
		fault = feed_fault(&flow.flow, &verdict);
		if (fault)
			fail(fault);
		if (idm_explain(snapshot, &flow.flow, &explained, list, &count) || explained.entry != verdict.entry ||
		    explained.verdict != verdict.verdict)
			fail("explanation and decision differ");
		check_batch(snapshot, &flow.flow, &verdict);
		check_path(snapshot, flow.flow);
		check_kept(snapshot, &flow.flow.http, &verdict);
	}
	return 0;
}
