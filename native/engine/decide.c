/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One flow in, one verdict out: who is asked about, which entry leads at L3/L4, what authentication it demands; a
 * redirected request is then judged in request.c.
 */
#include "decide.h"

#include <errno.h>

static const struct idm_policy *find_policy(const struct idm_policies *policies, uint32_t identity)
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
		return NULL;
	return &policies->policies[policies->subjects[low].policy];
}

static const struct idm_selected *find_selected(const struct idm_selectors *selectors, uint32_t identity)
{
	uint32_t low = 0, high = selectors->row_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (selectors->rows[middle].identity < identity)
			low = middle + 1;
		else
			high = middle;
	}
	return low < selectors->row_count && selectors->rows[low].identity == identity ? &selectors->rows[low] : NULL;
}

// Ingress names are the subject's own. Egress names are those of the peer's identity; see policy-semantics 8.
static void set_names(struct idm_look *look, const struct idm_identities *table, uint32_t direction,
		      const struct idm_endpoint *endpoint, uint32_t subject, uint32_t peer)
{
	const struct idm_identity *identity = &table->identities[peer];

	look->named_strings = table->strings;
	if (direction == IDM_INGRESS) {
		uint32_t index = idm_identity_find(table, subject);

		if (endpoint) {
			look->named = table->named + endpoint->first_named;
			look->named_count = endpoint->named_count;
			return;
		}
		if (index == IDM_NONE)
			return;
		identity = &table->identities[index];
	}
	look->named = table->named + identity->first_named;
	look->named_count = identity->named_count;
}

// A certificate that has ended is no evidence.
static bool has_evidence(const struct idm_flow *flow)
{
	uint32_t evidence =
		flow->peer.evidence & (IDM_EVIDENCE_ADDRESS | IDM_EVIDENCE_DATAPATH | IDM_EVIDENCE_CERTIFICATE);

	if (evidence != IDM_EVIDENCE_CERTIFICATE)
		return evidence != 0;
	return !flow->peer.expiry_ms || flow->now_ms < flow->peer.expiry_ms;
}

uint16_t idm_look_init(const struct idm_snapshot *snapshot, const struct idm_flow *flow, struct idm_look *look,
		       struct idm_subject_view *subject)
{
	const struct idm_identities *identities = idm_identities(snapshot);
	const struct idm_policies *policies = idm_policies(snapshot);
	const struct idm_selectors *selectors = idm_selectors(snapshot);
	uint32_t identity = flow->subject_identity, peer;
	const struct idm_selected *selected;
	const struct idm_policy *policy;

	subject->endpoint = NULL;
	subject->side = NULL;
	if (policies->meta->flags & IDM_POLICIES_CLOSED)
		return IDM_DROP_NOT_READY;
	if (flow->endpoint != IDM_NONE) {
		if (flow->endpoint >= identities->endpoint_count)
			return IDM_DROP_NO_POLICY;
		subject->endpoint = &identities->endpoints[flow->endpoint];
		identity = subject->endpoint->identity;
	}
	policy = find_policy(policies, identity);
	if (!policy)
		return IDM_DROP_NO_POLICY;
	subject->side = &policy->side[flow->direction];
	if (!has_evidence(flow))
		return IDM_DROP_UNKNOWN_SENDER;
	// Numbers of another identity domain mean something else there.
	if (flow->peer.domain && flow->peer.domain != snapshot->domain)
		return IDM_DROP_INVALID_IDENTITY;
	peer = idm_identity_find(identities, flow->peer.identity);
	if (peer == IDM_NONE)
		return IDM_DROP_INVALID_IDENTITY;
	selected = find_selected(selectors, flow->peer.identity);
	*look = (struct idm_look){
		.policies = policies,
		.side = subject->side,
		.selected = selected ? selectors->lists + selected->first : NULL,
		.selected_count = selected ? selected->count : 0,
		.port = flow->port,
		.protocol = flow->protocol,
	};
	set_names(look, identities, flow->direction, subject->endpoint, identity, peer);
	idm_look_floors(look);
	return 0;
}

void idm_l4_winner(const struct idm_look *look, struct idm_winner *ret)
{
	struct idm_walk walk;
	struct idm_refs list;

	*ret = (struct idm_winner){.index = IDM_NONE};
	idm_walk_start(&walk, look);
	while (idm_walk_next(&walk, &list)) {
		for (uint32_t i = 0; i < list.count; i++) {
			const struct idm_entry *entry = &look->policies->entries[list.refs[i]];

			if (ret->entry && entry->precedence < ret->entry->precedence)
				break;
			if (idm_reachable(look, entry))
				idm_winner_offer(ret, entry, list.refs[i], &list);
		}
	}
}

static uint8_t match_type(const struct idm_winner *winner)
{
	const struct idm_entry *entry = winner->entry;
	bool any = entry->selector == IDM_ANY;

	if (!entry->protocol)
		return any ? IDM_MATCH_ALL : IDM_MATCH_L3_ONLY;
	if (!winner->list.named && entry->first_port == 0 && entry->last_port == 0xffff)
		return any ? IDM_MATCH_PROTO_ONLY : IDM_MATCH_L3_PROTO;
	return any ? IDM_MATCH_L4_ONLY : IDM_MATCH_L3_L4;
}

static void drop_l4(struct idm_verdict *ret, uint32_t facts, uint16_t reason)
{
	ret->verdict = IDM_DROPPED;
	ret->l4_verdict = IDM_DROPPED;
	ret->at = facts ? IDM_AT_L4 : IDM_AT_NONE;
	ret->drop_reason = reason;
	ret->dropped_by = IDM_STAGE_L4;
}

static void forward_direct(struct idm_verdict *ret, uint32_t facts)
{
	ret->verdict = IDM_FORWARDED;
	ret->l4_verdict = IDM_FORWARDED;
	ret->at = facts ? IDM_AT_DIRECT : IDM_AT_NONE;
}

// No entry, or a deny entry. In audit mode the flow passes and the record keeps the reason.
static void deny_l4(struct idm_verdict *ret, uint32_t facts, const struct idm_subject_view *subject,
		    const struct idm_entry *entry)
{
	bool audit = subject->side->flags & IDM_SIDE_AUDIT;

	audit |= subject->endpoint && subject->endpoint->flags & IDM_ENDPOINT_AUDIT;
	audit |= entry && entry->flags & IDM_ENTRY_FLAG_AUDIT;
	drop_l4(ret, facts, entry ? IDM_DROP_POLICY_DENY : IDM_DROP_POLICY_DENIED);
	if (!audit)
		return;
	ret->verdict = IDM_AUDIT;
	ret->l4_verdict = IDM_AUDIT;
	ret->at = facts ? IDM_AT_DIRECT : IDM_AT_NONE;
	ret->dropped_by = IDM_STAGE_NONE;
}

// Only a certificate proves the handshake that "required" asks for; "always fail" is never satisfied.
static bool auth_missing(const struct idm_flow *flow, uint8_t demanded)
{
	if (!(flow->flags & IDM_FLOW_ENFORCE_AUTH) || demanded < IDM_AUTH_REQUIRED)
		return false;
	if (demanded == IDM_AUTH_ALWAYS_FAIL || !(flow->peer.evidence & IDM_EVIDENCE_CERTIFICATE))
		return true;
	return flow->peer.expiry_ms && flow->now_ms >= flow->peer.expiry_ms;
}

static void decide_enforced(const struct idm_look *look, const struct idm_flow *flow,
			    const struct idm_subject_view *subject, struct idm_verdict *ret)
{
	uint32_t facts = flow->flags & IDM_FACTS;
	struct idm_winner winner;

	idm_l4_winner(look, &winner);
	ret->entry = ret->l4_entry = winner.index;
	if (winner.entry)
		ret->match_type = match_type(&winner);
	if (!winner.entry || winner.entry->verdict == IDM_ENTRY_DENY) {
		deny_l4(ret, facts, subject, winner.entry);
		return;
	}
	ret->auth = idm_auth_demanded(look);
	if (auth_missing(flow, ret->auth)) {
		drop_l4(ret, facts, IDM_DROP_AUTH_REQUIRED);
		return;
	}
	if (winner.entry->verdict == IDM_ENTRY_ALLOW) {
		forward_direct(ret, facts);
		return;
	}
	ret->verdict = IDM_REDIRECTED;
	ret->l4_verdict = IDM_REDIRECTED;
	ret->l7 = winner.entry->l7;
	if (facts)
		idm_judge_request(look, flow, &winner, ret);
}

static void verdict_init(struct idm_verdict *ret, uint64_t revision)
{
	ret->verdict = IDM_DROPPED;
	ret->at = IDM_AT_NONE;
	ret->auth = IDM_AUTH_UNSET;
	ret->l7 = IDM_L7_NONE;
	ret->match_type = IDM_MATCH_NONE;
	ret->l4_verdict = IDM_DROPPED;
	ret->drop_reason = 0;
	ret->entry = ret->l4_entry = ret->http_rule = IDM_NONE;
	ret->change_count = 0;
	ret->dropped_by = IDM_STAGE_L4;
	ret->left = IDM_L7_NONE;
	ret->revision = revision;
}

int idm_decide(const struct idm_snapshot *snapshot, const struct idm_flow *flow, struct idm_verdict *ret)
{
	struct idm_subject_view subject;
	struct idm_look look;
	uint16_t reason;

	verdict_init(ret, snapshot->revision);
	if (flow->direction > IDM_EGRESS) {
		drop_l4(ret, flow->flags & IDM_FACTS, IDM_DROP_POLICY_DENIED);
		return -EINVAL;
	}
	reason = idm_look_init(snapshot, flow, &look, &subject);
	if (reason) {
		drop_l4(ret, flow->flags & IDM_FACTS, reason);
		return 0;
	}
	// Nobody knows what its policy says, so neither audit nor the absence of entries opens it.
	if (subject.side->flags & IDM_SIDE_ISOLATED) {
		drop_l4(ret, flow->flags & IDM_FACTS, IDM_DROP_POLICY_DENIED);
		return 0;
	}
	ret->dropped_by = IDM_STAGE_NONE;
	if (subject.side->flags & IDM_SIDE_ENFORCED) {
		decide_enforced(&look, flow, &subject, ret);
	} else {
		forward_direct(ret, flow->flags & IDM_FACTS);
		ret->match_type = IDM_MATCH_ALL;
	}
	return 0;
}

int idm_reads_headers(const struct idm_snapshot *snapshot, const struct idm_flow *flow)
{
	struct idm_subject_view subject;
	struct idm_look look;
	struct idm_walk walk;
	struct idm_refs list;

	if (flow->direction > IDM_EGRESS || idm_look_init(snapshot, flow, &look, &subject))
		return 0;
	idm_walk_start(&walk, &look);
	while (idm_walk_next(&walk, &list)) {
		for (uint32_t i = 0; i < list.count; i++) {
			const struct idm_entry *entry = &look.policies->entries[list.refs[i]];

			if (entry->l7 == IDM_L7_HTTP && entry->l7_set != IDM_NONE && idm_reachable(&look, entry) &&
			    look.policies->http_reads[entry->l7_set])
				return 1;
		}
	}
	return 0;
}
