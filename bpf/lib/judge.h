/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The verdict of a direction: policies come expanded, so a peer's identity names a list of port spans and a span names
 * the verdict. Whatever is missing or unknown on the way is a denial.
 */
#ifndef IDMESH_JUDGE_H
#define IDMESH_JUDGE_H

#include "lookup.h"

#define JUDGE_LINEAR 4  // lists as long as this are walked
#define JUDGE_STEPS 20  // of the binary search: lists up to 2^20
#define JUDGE_NO_SPAN 0xffffffffu

struct verdict {
	uint32_t entry;
	uint8_t code; // idm_verdict_code
	uint8_t drop_reason;
	uint8_t l7;
	uint8_t match_type;
};

/* What is asked: one direction of one policy. */
struct question {
	uint32_t slot;
	uint32_t policy;
	uint32_t identity; // of the peer
	uint16_t port;     // of the destination; ICMP: the type
	uint8_t protocol;
	uint8_t direction;
};

static __always_inline void judge_deny(struct verdict *verdict, uint8_t reason)
{
	verdict->entry = IDM_NO_INDEX;
	verdict->code = IDM_DROPPED;
	verdict->drop_reason = reason;
	verdict->l7 = IDM_L7_NONE;
	verdict->match_type = 0;
}

static __always_inline uint32_t judge_rank(uint8_t protocol, uint16_t port)
{
	return (uint32_t)protocol << 16 | port;
}

static __always_inline const struct idm_span_row *judge_row(uint32_t index)
{
	return bpf_map_lookup_elem(&spans, &index);
}

/* How many spans of the list begin at or before rank. More than the list has: a row is missing. */
PACKET_GLOBAL uint32_t judge_count(uint32_t first, uint32_t count, uint32_t rank)
{
	uint32_t low = 0, high = count;

	for (int i = 0; i < JUDGE_STEPS && low < high; i++) {
		uint32_t middle = (low + high) >> 1;
		const struct idm_span_row *row = judge_row(first + middle);

		if (!row)
			return JUDGE_NO_SPAN;
		if (judge_rank(row->protocol, row->first_port) <= rank)
			low = middle + 1;
		else
			high = middle;
	}
	return low == high ? low : JUDGE_NO_SPAN;
}

static __always_inline uint32_t judge_count_short(uint32_t first, uint32_t count, uint32_t rank)
{
	uint32_t found = 0;

	for (uint32_t i = 0; i < JUDGE_LINEAR && i < count; i++) {
		const struct idm_span_row *row = judge_row(first + i);

		if (!row)
			return JUDGE_NO_SPAN;
		if (judge_rank(row->protocol, row->first_port) > rank)
			break;
		found++;
	}
	return found;
}

// Whether the list names this protocol: one span does, and they stand together around the place where rank belongs.
static __always_inline bool judge_names(const struct idm_ports *ports, uint32_t before, uint8_t protocol)
{
	const struct idm_span_row *row;

	if (before) {
		row = judge_row(ports->first + before - 1);
		if (!row || row->protocol == protocol)
			return true;
	}
	if (before >= ports->count)
		return false;
	row = judge_row(ports->first + before);
	return !row || row->protocol == protocol;
}

/* The span that covers the port, or NULL. broken: the list has a row that is not there. */
static __always_inline const struct idm_span_row *judge_span(const struct idm_ports *ports, uint8_t protocol,
							      uint16_t port, bool *broken)
{
	uint32_t rank = judge_rank(protocol, port);
	uint32_t before = ports->count <= JUDGE_LINEAR ? judge_count_short(ports->first, ports->count, rank)
						       : judge_count(ports->first, ports->count, rank);
	const struct idm_span_row *row;

	*broken = before > ports->count;
	if (*broken)
		return NULL;
	row = before ? judge_row(ports->first + before - 1) : NULL;
	if (row && row->protocol == protocol && port <= row->last_port)
		return row;
	// Protocol 0 stands first and speaks for those that the list does not name.
	row = ports->count ? judge_row(ports->first) : NULL;
	if (!row || row->protocol || judge_names(ports, before, protocol))
		return NULL;
	return row;
}

static __always_inline void judge_by_span(const struct idm_span_row *row, struct verdict *verdict)
{
	verdict->entry = row->entry;
	verdict->code = row->verdict;
	verdict->drop_reason = row->drop_reason;
	verdict->l7 = row->l7;
	verdict->match_type = row->match_type;
}

// A verdict that we do not know is a denial, and so is one that wants more than the kernel can see.
static __always_inline void judge_check(struct verdict *verdict, uint8_t auth)
{
	uint8_t code = verdict->code;

	if (code == IDM_DROPPED) {
		if (!verdict->drop_reason)
			verdict->drop_reason = IDM_DROP_POLICY_DENIED;
		return;
	}
	if (code != IDM_FORWARDED && code != IDM_AUDIT && code != IDM_REDIRECTED)
		judge_deny(verdict, IDM_DROP_NOT_READY);
	else if (auth > IDM_AUTH_DISABLED)
		judge_deny(verdict, IDM_DROP_AUTH_REQUIRED);
}

static __always_inline const struct idm_side_row *judge_side(uint32_t slot, uint32_t side)
{
	return LOOKUP_SLOT(sides, slot, &side);
}

/* One direction's verdict, by the tables of one revision. */
PACKET_GLOBAL int judge_direction(const struct question *question, struct verdict *verdict)
{
	struct idm_peer_key peer;
	const struct idm_side_row *side = NULL;
	const struct idm_ports *listed;
	const struct idm_span_row *span;
	struct idm_ports ports;
	bool broken;

	if (!question || !verdict)
		return IDM_DROP_NOT_READY;
	peer.side = question->policy * 2 + question->direction;
	peer.identity = question->identity;
	judge_deny(verdict, question->identity ? IDM_DROP_NO_POLICY : IDM_DROP_INVALID_IDENTITY);
	if (!question->identity)
		return 0;
	if (question->policy != IDM_NO_INDEX)
		side = judge_side(question->slot, peer.side);
	// No such side: an endpoint that we know but have no policy of.
	if (!side || !(side->flags & IDM_SIDE_ROW_USED))
		return 0;
	if (side->flags & IDM_SIDE_ROW_ISOLATED) {
		verdict->drop_reason = IDM_DROP_POLICY_DENIED;
		return 0;
	}
	if (side->flags & IDM_SIDE_ROW_OPEN) {
		verdict->code = IDM_FORWARDED;
		verdict->drop_reason = 0;
		verdict->match_type = IDM_MATCH_ALL;
		return 0;
	}
	listed = LOOKUP_SLOT(peers, question->slot, &peer);
	// Not listed: no selector of this side selects the peer, what holds for any peer holds for it.
	ports = listed ? *listed : side->any;
	span = judge_span(&ports, question->protocol, question->port, &broken);
	if (broken) {
		verdict->drop_reason = IDM_DROP_NOT_READY;
		return 0;
	}
	if (span) {
		judge_by_span(span, verdict);
	} else {
		// No span covers the port: the side says what that means.
		verdict->code = side->miss_verdict;
		verdict->drop_reason = side->miss_drop;
	}
	judge_check(verdict, span ? span->auth : IDM_AUTH_UNSET);
	return 0;
}

#endif
