/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests of redirected flows. HTTP and server names are judged by the ordered walk: the leading entry that gives a
 * verdict decides, an entry whose lists do not hold the request gives none. The walk is a maximum over the lists, as
 * at L3/L4, where an entry is asked only if it would lead.
 */
#include "decide.h"

#include "http.h"
#include "names.h"
#include "path.h"

// Sets whose answer a request remembers.
#define ASKED_MAX 16

/* One request on its way through the entries. */
struct request {
	const struct idm_look *look;
	uint32_t facts;
	struct idm_http http;
	struct rest path; // of http
	struct {
		uint32_t set;
		uint32_t rule;
	} asked[ASKED_MAX];
	uint32_t asked_count;
	struct idm_bytes sni; // as the matchers want it; size 0: unknown or empty
	uint32_t rule;        // of the leading entry
	bool sni_held;        // some entry holds the server name
	bool acts;            // some entry changes headers
};

static void drop_request(struct idm_verdict *ret, uint32_t stage)
{
	ret->verdict = IDM_DROPPED;
	ret->at = IDM_AT_PROXY;
	ret->dropped_by = stage;
	ret->change_count = 0;
}

static void allow_request(struct idm_verdict *ret, uint32_t entry)
{
	ret->verdict = IDM_FORWARDED;
	ret->at = IDM_AT_PROXY;
	ret->entry = entry;
}

static bool sni_holds(const struct request *request, const struct idm_entry *entry)
{
	if (entry->sni == IDM_NONE)
		return true;
	// An unknown or empty name is in no list.
	return request->sni.size && idm_matches(request->look->policies, entry->sni, request->sni);
}

// A rule for several peers is an entry for each, all with one set: it is asked once.
static uint32_t match_set(struct request *request, uint32_t set)
{
	uint32_t rule;

	for (uint32_t i = 0; i < request->asked_count; i++)
		if (request->asked[i].set == set)
			return request->asked[i].rule;
	rule = idm_http_set_match(request->look->policies, set, &request->http, &request->path);
	if (request->asked_count < ASKED_MAX) {
		request->asked[request->asked_count].set = set;
		request->asked[request->asked_count++].rule = rule;
	}
	return rule;
}

// What the connection's server name cannot answer.
static uint32_t left_to_judge(const struct request *request, const struct idm_entry *entry)
{
	if (request->facts & IDM_FLOW_HTTP)
		return IDM_L7_NONE;
	if (entry->l7 == IDM_L7_HTTP)
		return entry->l7_set == IDM_NONE ? IDM_L7_NONE : IDM_L7_HTTP;
	return entry->l7 == IDM_L7_LISTENER ? IDM_L7_LISTENER : IDM_L7_NONE;
}

// True if the entry gives a verdict. *rule: the HTTP rule that held the request.
static bool gives_verdict(struct request *request, const struct idm_entry *entry, uint32_t *rule)
{
	*rule = IDM_NONE;
	if (entry->verdict == IDM_ENTRY_DENY)
		return true;
	if (!sni_holds(request, entry))
		return false;
	if (entry->l7 == IDM_L7_DNS || entry->l7 == IDM_L7_KAFKA || entry->l7 == IDM_L7_OTHER)
		return false;
	request->sni_held = true;
	// The server name alone is judged before there is a request.
	if (entry->l7 != IDM_L7_HTTP || entry->l7_set == IDM_NONE || !(request->facts & IDM_FLOW_HTTP))
		return true;
	*rule = match_set(request, entry->l7_set);
	return *rule != IDM_NONE;
}

static bool has_actions(const struct idm_policies *policies, const struct idm_entry *entry)
{
	return entry->l7 == IDM_L7_HTTP && entry->l7_set != IDM_NONE &&
	       policies->http_sets[entry->l7_set].flags & IDM_HTTP_SET_ACTIONS;
}

static void walk_request(struct request *request, struct idm_winner *ret)
{
	const struct idm_look *look = request->look;
	struct idm_walk walk;
	struct idm_refs list;
	uint32_t rule;

	*ret = (struct idm_winner){.index = IDM_NONE};
	idm_walk_start(&walk, look);
	while (idm_walk_next(&walk, &list)) {
		for (uint32_t i = 0; i < list.count; i++) {
			const struct idm_entry *entry = &look->policies->entries[list.refs[i]];

			if (ret->entry && entry->precedence < ret->entry->precedence)
				break;
			if (!idm_reachable(look, entry))
				continue;
			request->acts |= has_actions(look->policies, entry);
			if (ret->entry && idm_entry_rank(entry, &list) <= ret->rank)
				continue;
			if (!gives_verdict(request, entry, &rule))
				continue;
			idm_winner_offer(ret, entry, list.refs[i], &list);
			request->rule = rule;
		}
	}
}

// Every matching rule of the leading precedence runs its actions, not only the one that is shown
// (cilium/proxy network_policy.cc: no early exit where a port has header matches).
static bool collect_changes(struct request *request, const struct idm_winner *winner, struct idm_verdict *ret)
{
	const struct idm_look *look = request->look;
	struct idm_changes changes = {.verdict = ret};
	struct idm_walk walk;
	struct idm_refs list;

	idm_walk_start(&walk, look);
	while (idm_walk_next(&walk, &list)) {
		for (uint32_t i = 0; i < list.count; i++) {
			const struct idm_entry *entry = &look->policies->entries[list.refs[i]];

			if (entry->precedence < winner->entry->precedence)
				break;
			if (entry->precedence == winner->entry->precedence && idm_reachable(look, entry) &&
			    has_actions(look->policies, entry) && sni_holds(request, entry))
				idm_http_set_collect(look->policies, entry->l7_set, &request->http, &request->path, &changes);
		}
	}
	return !changes.overflow;
}

static void judge_walk(struct request *request, struct idm_verdict *ret)
{
	struct idm_winner winner;

	if (request->facts & IDM_FLOW_HTTP)
		request->path = idm_http_path(&request->http);
	walk_request(request, &winner);
	if (!winner.entry) {
		bool by_name = request->facts & IDM_FLOW_SNI && !request->sni_held;

		drop_request(ret, by_name || !(request->facts & IDM_FLOW_HTTP) ? IDM_STAGE_SNI : IDM_STAGE_HTTP);
		return;
	}
	if (winner.entry->verdict == IDM_ENTRY_DENY) {
		ret->entry = winner.index;
		drop_request(ret, request->facts & IDM_FLOW_HTTP ? IDM_STAGE_HTTP : IDM_STAGE_SNI);
		return;
	}
	allow_request(ret, winner.index);
	ret->left = left_to_judge(request, winner.entry);
	ret->http_rule = request->rule;
	if (request->acts && request->facts & IDM_FLOW_HTTP && !collect_changes(request, &winner, ret))
		drop_request(ret, IDM_STAGE_CHANGES);
}

// Kept out of line: its buffer is only paid for by requests whose path must be rewritten.
__attribute__((noinline)) static void judge_raw_path(struct request *request, struct idm_verdict *ret)
{
	char path[IDM_PATH_MAX];
	size_t size;

	if (idm_path_rewrite(request->http.path, path, sizeof(path), &size) < 0) {
		drop_request(ret, IDM_STAGE_PATH);
		return;
	}
	request->http.path = (struct idm_bytes){.ptr = path, .size = size};
	judge_walk(request, ret);
}

static void judge_http(struct request *request, const struct idm_flow *flow, struct idm_verdict *ret)
{
	struct idm_bytes path = flow->http.path;
	uint32_t text_max = request->look->side->text_max;

	request->http = flow->http;
	if (text_max && (path.size > text_max || request->http.host.size > text_max)) {
		drop_request(ret, IDM_STAGE_PATH);
		return;
	}
	// No path at all (CONNECT) is left as it is: only rules without path can hold it.
	if (!path.size || (path.size <= IDM_PATH_MAX && idm_path_is_plain(path)))
		judge_walk(request, ret);
	else if (path.size > IDM_PATH_MAX)
		drop_request(ret, IDM_STAGE_PATH);
	else if (flow->flags & IDM_FLOW_RAW_PATH)
		judge_raw_path(request, ret);
	else if (idm_path_is_canonical(path))
		judge_walk(request, ret);
	else
		drop_request(ret, IDM_STAGE_PATH);
}

static void judge_ordered(const struct idm_look *look, const struct idm_flow *flow, struct idm_verdict *ret)
{
	struct request request; // its memory of sets is not worth clearing
	char sni[IDM_NAME_MAX];

	request.look = look;
	request.facts = flow->flags & IDM_FACTS;
	request.asked_count = 0;
	request.rule = IDM_NONE;
	request.sni_held = request.acts = false;
	request.sni = flow->flags & IDM_FLOW_SNI ? idm_sni_normal(flow->sni, sni) : (struct idm_bytes){0};
	if (flow->flags & IDM_FLOW_HTTP)
		judge_http(&request, flow, ret);
	else
		judge_walk(&request, ret);
}

static void refuse_kind(struct idm_verdict *ret)
{
	drop_request(ret, IDM_STAGE_KIND);
	ret->drop_reason = IDM_DROP_PROXY_UNSUPPORTED;
}

static void judge_alone(const struct idm_look *look, const struct idm_flow *flow, uint8_t l7, struct idm_verdict *ret)
{
	struct idm_winner winner;
	bool allowed = l7 == IDM_L7_DNS ? idm_dns_allowed(look, flow->dns, &winner)
					: idm_kafka_allowed(look, &flow->kafka, &winner);

	if (allowed)
		allow_request(ret, winner.index);
	else
		drop_request(ret, l7 == IDM_L7_DNS ? IDM_STAGE_DNS : IDM_STAGE_KAFKA);
}

void idm_judge_request(const struct idm_look *look, const struct idm_flow *flow, const struct idm_winner *winner,
		       struct idm_verdict *ret)
{
	const uint32_t ordered = IDM_FLOW_HTTP | IDM_FLOW_SNI;
	uint32_t facts = flow->flags & IDM_FACTS;

	switch (winner->entry->l7) {
	case IDM_L7_OTHER:
		drop_request(ret, IDM_STAGE_PARSER);
		break;
	case IDM_L7_DNS:
	case IDM_L7_KAFKA:
		if (facts == (winner->entry->l7 == IDM_L7_DNS ? IDM_FLOW_DNS : IDM_FLOW_KAFKA))
			judge_alone(look, flow, winner->entry->l7, ret);
		else
			refuse_kind(ret);
		break;
	default:
		// A custom listener takes any kind; what it does with it is its own.
		if (!(facts & ~ordered))
			judge_ordered(look, flow, ret);
		else if (winner->entry->l7 == IDM_L7_LISTENER && winner->entry->sni == IDM_NONE)
			allow_request(ret, winner->index);
		else
			refuse_kind(ret);
	}
}
