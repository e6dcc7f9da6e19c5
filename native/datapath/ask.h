/* SPDX-License-Identifier: Apache-2.0 */
/* One peer on one side, asked for every port: what the engine answers, as the shortest list of spans. */
#ifndef IDMESH_DATAPATH_ASK_H
#define IDMESH_DATAPATH_ASK_H

#include "engine/internal.h"
#include "idmesh/datapath.h"

struct idm_point { // the answer may change at this port of the protocol
	uint32_t port; // 0 to 65536
	uint8_t protocol;
};

struct idm_asking {
	const struct idm_snapshot *snapshot;
	uint32_t endpoint, direction;
	const struct idm_side *side;
	const struct idm_named_port *names; // that count for this peer on this side
	uint32_t name_count;
	struct idm_span_row miss; // what the kernel answers where no span is
	// Reused from peer to peer.
	struct idm_point *points;
	uint32_t point_count, point_room;
	struct idm_span_row *spans;
	uint32_t span_count, span_room;
};

void idm_asking_deinit(struct idm_asking *asking);
/**
 * Fill in spans.
 * @param[in] rows Rows of the side whose selectors select the peer; the side's any_row is looked at, too.
 */
int idm_ask_peer(struct idm_asking *asking, uint32_t peer, const uint32_t *rows, uint32_t row_count);

#endif
