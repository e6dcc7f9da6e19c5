/* SPDX-License-Identifier: Apache-2.0 */
/* Why a flow was decided so: every entry of the subject's side with the first thing that kept it from deciding. */
#include <errno.h>
#include <stdlib.h>

#include "decide.h"
#include "http.h"
#include "names.h"
#include "path.h"

struct explainer {
	const struct idm_flow *flow;
	const struct idm_verdict *verdict;
	struct idm_look look;
	uint8_t *reasons; // per entry of the table: 0 not seen, else idm_consider + 1
	struct idm_considered *list;
	size_t room;
	size_t count;
};

static bool peer_selected(const struct idm_look *look, uint32_t selector)
{
	if (selector == IDM_ANY)
		return true;
	for (uint32_t i = 0; i < look->selected_count; i++)
		if (look->selected[i] == selector)
			return true;
	return false;
}

static bool request_held(const struct explainer *explainer, const struct idm_entry *entry)
{
	const struct idm_policies *policies = explainer->look.policies;
	const struct idm_flow *flow = explainer->flow;
	struct idm_http http = flow->http;
	char path[IDM_PATH_MAX];
	struct idm_winner winner;
	struct rest text;
	size_t size;

	if (entry->verdict != IDM_ENTRY_REDIRECT || entry->l7_set == IDM_NONE)
		return true;
	if (entry->l7 == IDM_L7_DNS && flow->flags & IDM_FLOW_DNS) {
		uint32_t matcher = policies->dns_sets[entry->l7_set].matcher;

		return matcher == IDM_NONE || idm_matches(policies, matcher, idm_dns_normal(flow->dns, path));
	}
	if (entry->l7 == IDM_L7_KAFKA && flow->flags & IDM_FLOW_KAFKA)
		return idm_kafka_allowed(&explainer->look, &flow->kafka, &winner);
	if (entry->l7 != IDM_L7_HTTP || !(flow->flags & IDM_FLOW_HTTP))
		return true;
	if (http.path.size && idm_path_rewrite(http.path, path, sizeof(path), &size) < 0)
		return false;
	if (http.path.size && flow->flags & IDM_FLOW_RAW_PATH)
		http.path = (struct idm_bytes){.ptr = path, .size = size};
	text = idm_http_path(&http);
	return idm_http_set_match(policies, entry->l7_set, &http, &text) != IDM_NONE;
}

static bool sni_held(const struct explainer *explainer, const struct idm_entry *entry)
{
	char buffer[IDM_NAME_MAX];
	struct idm_bytes sni;

	if (entry->sni == IDM_NONE || !(explainer->flow->flags & IDM_FACTS))
		return true;
	if (!(explainer->flow->flags & IDM_FLOW_SNI))
		return false;
	sni = idm_sni_normal(explainer->flow->sni, buffer);
	return sni.size && idm_matches(explainer->look.policies, entry->sni, sni);
}

// Of an entry that covers the flow.
static uint32_t matched_reason(const struct explainer *explainer, uint32_t index)
{
	const struct idm_entry *entry = &explainer->look.policies->entries[index];

	if (index == explainer->verdict->entry)
		return IDM_CONSIDER_WON;
	if (entry->verdict != IDM_ENTRY_PASS && !idm_reachable(&explainer->look, entry))
		return IDM_CONSIDER_PASSED_OVER;
	if (!sni_held(explainer, entry))
		return IDM_CONSIDER_SNI;
	return request_held(explainer, entry) ? IDM_CONSIDER_MATCHED : IDM_CONSIDER_L7;
}

static uint32_t missed_reason(const struct explainer *explainer, const struct idm_entry *entry)
{
	if (!peer_selected(&explainer->look, entry->selector))
		return IDM_CONSIDER_PEER;
	if (entry->protocol && entry->protocol != explainer->look.protocol)
		return IDM_CONSIDER_PROTOCOL;
	return entry->port_name.size ? IDM_CONSIDER_PORT_NAME : IDM_CONSIDER_PORT;
}

static void note(struct explainer *explainer, uint32_t index, uint32_t reason)
{
	if (explainer->reasons[index])
		return;
	explainer->reasons[index] = (uint8_t)(reason + 1);
	if (explainer->count < explainer->room)
		explainer->list[explainer->count] = (struct idm_considered){.entry = index, .reason = reason};
	explainer->count++;
}

static void note_refs(struct explainer *explainer, uint32_t first, uint32_t count)
{
	const struct idm_policies *policies = explainer->look.policies;

	for (uint32_t i = 0; i < count; i++) {
		uint32_t index = policies->refs[first + i];

		note(explainer, index, missed_reason(explainer, &policies->entries[index]));
	}
}

static void note_row(struct explainer *explainer, const struct idm_row *row)
{
	const struct idm_policies *policies = explainer->look.policies;

	for (uint32_t i = 0; i < row->span_count; i++) {
		const struct idm_span *span = &policies->spans[row->first_span + i];

		note_refs(explainer, span->first_ref, span->ref_count);
	}
	for (uint32_t i = 0; i < row->named_count; i++) {
		const struct idm_named_span *span = &policies->named[row->first_named + i];

		note_refs(explainer, span->first_ref, span->ref_count);
	}
}

static void note_all(struct explainer *explainer)
{
	const struct idm_side *side = explainer->look.side;
	const struct idm_policies *policies = explainer->look.policies;
	struct idm_walk walk;
	struct idm_refs list;

	// What covers the flow first, so that whatever is left has missed it.
	idm_walk_start(&walk, &explainer->look);
	while (idm_walk_next(&walk, &list))
		for (uint32_t i = 0; i < list.count; i++)
			note(explainer, list.refs[i], matched_reason(explainer, list.refs[i]));
	for (uint32_t i = 0; i < side->row_count; i++)
		note_row(explainer, &policies->rows[side->first_row + i]);
	if (side->any_row != IDM_NONE)
		note_row(explainer, &policies->rows[side->any_row]);
}

int idm_explain(const struct idm_snapshot *snapshot, const struct idm_flow *flow, struct idm_verdict *ret,
		struct idm_considered *list, size_t *count)
{
	struct explainer explainer = {.flow = flow, .verdict = ret, .list = list, .room = *count};
	struct idm_subject_view subject;
	int r = idm_decide(snapshot, flow, ret);

	*count = 0;
	if (r || idm_look_init(snapshot, flow, &explainer.look, &subject))
		return r;
	explainer.reasons = calloc(explainer.look.policies->entry_count + 1, 1);
	if (!explainer.reasons)
		return -ENOMEM;
	note_all(&explainer);
	free(explainer.reasons);
	*count = explainer.count;
	return 0;
}
