// SPDX-License-Identifier: Apache-2.0
// From a request to a verdict. The peer is the connection's (or what our listener filter says of it), never
// a header; the destination is the connection's, or the one that Envoy's configuration names.
#include <arpa/inet.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include "judge.h"

#define TCP 6
#define UDP 17

const void *judge_section(const struct idm_snapshot *snapshot, uint32_t table, uint32_t id, size_t *count)
{
	size_t size;
	const uint8_t *bytes = idm_snapshot_table(snapshot, table, &size);
	const struct idm_section *sections = (const struct idm_section *)bytes;

	*count = bytes ? sections[id].count : 0;
	return bytes ? bytes + sections[id].offset : NULL;
}

struct idm_bytes judge_string(const struct idm_snapshot *snapshot, uint32_t table, uint32_t strings,
			      struct idm_string text)
{
	size_t count;
	const char *bytes = judge_section(snapshot, table, strings, &count);

	if ((uint64_t)text.offset + text.size > count)
		return (struct idm_bytes){ 0 };
	return (struct idm_bytes){ bytes + text.offset, text.size };
}

static const struct idm_endpoint *endpoint_at(const struct idm_snapshot *snapshot, uint32_t index)
{
	size_t count;
	const struct idm_endpoint *list =
		judge_section(snapshot, IDM_TABLE_IDENTITIES, IDM_ID_ENDPOINTS, &count);

	return index < count ? &list[index] : NULL;
}

static bool same(struct idm_bytes a, struct idm_bytes b)
{
	return a.size == b.size && (!a.size || !memcmp(a.ptr, b.ptr, a.size));
}

static uint32_t scan_names(const struct idm_snapshot *snapshot, struct idm_bytes name)
{
	size_t count;
	const struct idm_endpoint *list =
		judge_section(snapshot, IDM_TABLE_IDENTITIES, IDM_ID_ENDPOINTS, &count);

	for (size_t i = 0; i < count; i++) {
		if (same(judge_string(snapshot, IDM_TABLE_IDENTITIES, IDM_ID_STRINGS, list[i].name), name))
			return i;
	}
	return IDM_NONE;
}

static uint32_t endpoint_named(const struct idm_snapshot *snapshot, struct idm_bytes name, struct name_cache *cache)
{
	const uint8_t *digest = idm_snapshot_digest(snapshot);
	uint32_t found;

	if (same(name, (struct idm_bytes){ cache->name, cache->name_size }) &&
	    !memcmp(cache->digest, digest, sizeof(cache->digest)))
		return cache->endpoint;
	found = scan_names(snapshot, name);
	if (name.size <= sizeof(cache->name)) {
		memcpy(cache->digest, digest, sizeof(cache->digest));
		memcpy(cache->name, name.ptr, name.size);
		cache->name_size = name.size;
		cache->endpoint = found;
	}
	return found;
}

// Identity and endpoint of an address in text.
static int resolve(const struct idm_snapshot *snapshot, struct idm_bytes text, struct end *ret)
{
	char copy[INET6_ADDRSTRLEN];

	if (!text.size || text.size >= sizeof(copy))
		return -EINVAL;
	memcpy(copy, text.ptr, text.size);
	copy[text.size] = '\0';
	if (memchr(copy, '\0', text.size))
		return -EINVAL;
	if (inet_pton(AF_INET, copy, ret->address) == 1)
		ret->family = 4;
	else if (inet_pton(AF_INET6, copy, ret->address) == 1)
		ret->family = 6;
	else
		return -EINVAL;
	return idm_resolve(snapshot, ret->family, ret->address, &ret->identity, &ret->endpoint);
}

static int read_port(struct idm_bytes text, uint32_t *ret)
{
	uint32_t port = 0;

	if (!text.size || text.size > 5)
		return -EINVAL;
	for (size_t i = 0; i < text.size; i++) {
		unsigned int digit = (unsigned char)text.ptr[i] - '0';

		if (digit > 9)
			return -EINVAL;
		port = port * 10 + digit;
	}
	*ret = port;
	return port > 65535 ? -EINVAL : 0;
}

// Cut ":PORT" (of "[ADDRESS]:PORT" also the brackets) off a written destination; an IPv6 address keeps its colons.
static int split_port(struct idm_bytes *text, uint32_t *port)
{
	const char *end = text->ptr + text->size;
	const char *colon = end;
	struct idm_bytes head;

	while (colon > text->ptr && *--colon != ':')
		;
	if (!text->size || *colon != ':')
		return 0;
	head = (struct idm_bytes){ text->ptr, colon - text->ptr };
	if (head.size > 1 && head.ptr[0] == '[' && head.ptr[head.size - 1] == ']')
		head = (struct idm_bytes){ head.ptr + 1, head.size - 2 };
	else if (memchr(head.ptr, ':', head.size))
		return 0;
	*text = head;
	return read_port((struct idm_bytes){ colon + 1, end - colon - 1 }, port);
}

static int find_named(const struct idm_snapshot *snapshot, struct idm_bytes named, struct name_cache *cache,
		      struct judged *judged)
{
	const struct idm_endpoint *endpoint;

	if (split_port(&named, &judged->port))
		return -EINVAL;
	if (!memchr(named.ptr, '/', named.size))
		return resolve(snapshot, named, &judged->destination);
	judged->destination.endpoint = endpoint_named(snapshot, named, cache);
	endpoint = endpoint_at(snapshot, judged->destination.endpoint);
	if (!endpoint)
		return -ENOENT;
	judged->destination.identity = endpoint->identity;
	return 0;
}

// The route's word counts before the filter's, and that before the connection's address.
static int find_destination(const struct idm_snapshot *snapshot, const struct idm_check_options *options,
			    const struct request *request, struct name_cache *cache, struct judged *judged)
{
	struct idm_bytes named = request->named.size ? request->named : options->destination;

	judged->port = request->destination.port;
	if (named.size)
		return find_named(snapshot, named, cache, judged);
	if (request->metadata.local.size)
		return resolve(snapshot, request->metadata.local, &judged->destination);
	return resolve(snapshot, request->destination.text, &judged->destination);
}

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (uint64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static uint32_t error_of(uint32_t answer)
{
	if (answer == IDM_PEER_FINE)
		return IDM_CHECK_FINE;
	return answer == IDM_PEER_NO_ADDRESS ? IDM_CHECK_NO_PEER : IDM_CHECK_DISAGREE;
}

// Who connects, from all the evidence that the filter's configuration lets count.
static uint32_t find_peer(const struct idm_snapshot *snapshot, const struct idm_check_options *options,
			  const struct request *request, struct name_cache *cache, struct judged *judged)
{
	const struct request_metadata *metadata = &request->metadata;
	struct end *source = &judged->source;
	struct idm_peer_facts facts = {
		.told = metadata->has_identity,
		.told_identity = metadata->identity,
		.told_evidence = metadata->evidence,
		.told_domain = metadata->domain,
		.certificate = options->certificate,
		.now_ms = options->peer.trust_domain.size ? now_ms() : 0,
	};
	uint32_t answer;

	if (resolve(snapshot, metadata->address.size ? metadata->address : request->source.text, source))
		return IDM_CHECK_NO_PEER;
	facts.family = source->family;
	facts.address = source->address;
	answer = idm_peer_judge(snapshot, &options->peer, &facts, &cache->peers, &judged->peer, &source->endpoint);
	source->identity = judged->peer.identity;
	return error_of(answer);
}

static void fill_flow(const struct request *request, const struct judged *judged, uint32_t direction,
		      struct idm_flow *flow)
{
	const struct end *subject = direction == IDM_INGRESS ? &judged->destination : &judged->source;

	memset(flow, 0, sizeof(*flow));
	flow->direction = direction;
	flow->flags = IDM_FLOW_ENFORCE_AUTH;
	flow->endpoint = subject->endpoint;
	flow->subject_identity = subject->identity;
	flow->peer = judged->peer;
	if (direction == IDM_EGRESS)
		flow->peer = (struct idm_peer){ .identity = judged->destination.identity,
						.evidence = IDM_EVIDENCE_ADDRESS };
	flow->now_ms = flow->peer.expiry_ms ? now_ms() : 0;
	flow->port = judged->port;
	flow->protocol = request->destination.udp ? UDP : TCP;
	if (request->has_http) {
		flow->flags |= IDM_FLOW_HTTP;
		flow->http = request->http;
	}
	if (request->has_sni) {
		flow->flags |= IDM_FLOW_SNI;
		flow->sni = request->sni;
	}
}

static bool followed(const struct idm_check_options *options, uint32_t l7)
{
	return options->http_follows && l7 == IDM_L7_HTTP;
}

// What the engine's answer means at this door: a redirect that nothing behind us enforces is a denial, and a server
// name, which the client chooses, does not stand for the requests that follow it.
static uint32_t door_drop(const struct idm_check_options *options, const struct idm_verdict *verdict)
{
	switch (verdict->verdict) {
	case IDM_FORWARDED:
	case IDM_AUDIT:
		return !verdict->left || followed(options, verdict->left) ? 0 : IDM_DROP_PROXY_UNSUPPORTED;
	case IDM_REDIRECTED:
		return followed(options, verdict->l7) ? 0 : IDM_DROP_PROXY_UNSUPPORTED;
	default:
		return verdict->drop_reason;
	}
}

static bool decide(const struct idm_snapshot *snapshot, const struct idm_check_options *options,
		   const struct request *request, uint32_t direction, struct judged *judged)
{
	struct idm_verdict *verdict = &judged->verdicts[judged->count];
	struct idm_flow flow;

	fill_flow(request, judged, direction, &flow);
	if (flow.endpoint == IDM_NONE) {
		judged->error = IDM_CHECK_NO_DESTINATION;
		judged->drop_reason = IDM_DROP_NO_POLICY;
		return false;
	}
	judged->direction = direction;
	if (idm_decide(snapshot, &flow, verdict)) {
		judged->error = IDM_CHECK_ENGINE;
		return false;
	}
	judged->shown = judged->count++;
	judged->drop_reason = door_drop(options, verdict);
	judged->audit |= verdict->verdict == IDM_AUDIT;
	return verdict->verdict == IDM_AUDIT ||
	       ((verdict->verdict == IDM_FORWARDED || verdict->verdict == IDM_REDIRECTED) && !judged->drop_reason);
}

static bool source_is_local(const struct idm_snapshot *snapshot, const struct judged *judged)
{
	const struct idm_endpoint *endpoint = endpoint_at(snapshot, judged->source.endpoint);

	return endpoint && (endpoint->flags & IDM_ENDPOINT_LOCAL);
}

static bool decide_all(const struct idm_snapshot *snapshot, const struct idm_check_options *options,
		       const struct request *request, struct judged *judged)
{
	if (options->direction != IDM_CHECK_BOTH)
		return decide(snapshot, options, request, options->direction, judged);
	if (source_is_local(snapshot, judged) && !decide(snapshot, options, request, IDM_EGRESS, judged))
		return false;
	return decide(snapshot, options, request, IDM_INGRESS, judged);
}

static void refuse(struct judged *judged, uint32_t error, uint32_t drop_reason)
{
	judged->error = error;
	judged->drop_reason = drop_reason;
}

// A tunnel's bytes would pass unseen, as at the module's door.
static bool is_tunnel(const struct request *request)
{
	return request->has_http && same(request->http.method, (struct idm_bytes){ "CONNECT", 7 });
}

void judge(const struct idm_snapshot *snapshot, const struct idm_check_options *options,
	   const struct request *request, struct name_cache *cache, struct judged *ret)
{
	uint32_t error;

	// verdicts are written before they are read.
	memset(ret, 0, offsetof(struct judged, verdicts));
	ret->source.endpoint = ret->destination.endpoint = IDM_NONE;
	ret->direction = options->direction == IDM_EGRESS ? IDM_EGRESS : IDM_INGRESS;
	if (!snapshot) {
		refuse(ret, IDM_CHECK_NO_SNAPSHOT, IDM_DROP_NOT_READY);
		return;
	}
	error = find_peer(snapshot, options, request, cache, ret);
	if (error) {
		refuse(ret, error, IDM_DROP_UNKNOWN_SENDER);
		return;
	}
	if (find_destination(snapshot, options, request, cache, ret) || ret->port > 65535) {
		refuse(ret, IDM_CHECK_NO_DESTINATION, IDM_DROP_NO_POLICY);
		return;
	}
	if (options->port)
		ret->port = options->port;
	if (!ret->port) { // nobody listens there: the port is not known
		refuse(ret, IDM_CHECK_NO_DESTINATION, IDM_DROP_NO_POLICY);
		return;
	}
	ret->allowed = decide_all(snapshot, options, request, ret);
	if (ret->allowed && is_tunnel(request)) {
		ret->allowed = false;
		ret->drop_reason = IDM_DROP_PROXY_UNSUPPORTED;
	}
}
