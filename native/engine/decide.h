/* SPDX-License-Identifier: Apache-2.0 */
/* The steps of a decision, shared with explaining. */
#ifndef IDMESH_ENGINE_DECIDE_H
#define IDMESH_ENGINE_DECIDE_H

#include "walk.h"

#define IDM_FACTS (IDM_FLOW_HTTP | IDM_FLOW_DNS | IDM_FLOW_KAFKA | IDM_FLOW_SNI)

/* The entry that leads so far; entry is NULL before there is one. */
struct idm_winner {
	const struct idm_entry *entry;
	uint32_t index;
	idm_rank rank;
	struct idm_refs list; // where it was found
};

/* Who is asked about: what idm_look_init() found. */
struct idm_subject_view {
	const struct idm_side *side; // NULL: no policy
	const struct idm_endpoint *endpoint; // or NULL
};

/**
 * Find subject, peer and side.
 * @param[out] look Filled in if 0 is returned.
 * @return 0, or the drop reason (idm_drop) that answers the flow already.
 */
uint16_t idm_look_init(const struct idm_snapshot *snapshot, const struct idm_flow *flow, struct idm_look *look,
		       struct idm_subject_view *subject);

/* L3/L4 winner among the reachable entries. */
void idm_l4_winner(const struct idm_look *look, struct idm_winner *ret);

/* Authentication that an allowed flow demands: written on the winner, or inherited from a broader entry. */
uint8_t idm_auth_demanded(const struct idm_look *look);

/* Judge the request of a flow that L3/L4 redirected; writes the final answer. */
void idm_judge_request(const struct idm_look *look, const struct idm_flow *flow, const struct idm_winner *winner,
		       struct idm_verdict *ret);

/* Kinds of requests other than HTTP. True if allowed; *ret is then the entry that allows. */
bool idm_dns_allowed(const struct idm_look *look, struct idm_bytes name, struct idm_winner *ret);
bool idm_kafka_allowed(const struct idm_look *look, const struct idm_kafka *kafka, struct idm_winner *ret);

/* Keep the better of the leader and this entry. */
static inline void idm_winner_offer(struct idm_winner *winner, const struct idm_entry *entry, uint32_t index,
				    const struct idm_refs *list)
{
	idm_rank rank = idm_entry_rank(entry, list);

	if (winner->entry && rank <= winner->rank)
		return;
	*winner = (struct idm_winner){.entry = entry, .index = index, .rank = rank, .list = *list};
}

#endif
