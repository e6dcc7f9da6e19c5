/* SPDX-License-Identifier: Apache-2.0 */
/* Mapping a ring's memfd: the data twice in a row, so that no record ever wraps. */
#ifndef IDMESH_FLOW_RING_H
#define IDMESH_FLOW_RING_H

#include <stdbool.h>

#include "idmesh/flow.h"

struct ring_map {
	struct idm_ring_head *head;
	uint8_t *data;
	uint32_t size; /* of the data, once */
};

bool ring_size_good(uint64_t data_size);
/* 0 or a negative errno. */
int ring_map(int fd, uint32_t data_size, struct ring_map *ret);
void ring_unmap(struct ring_map *map);

#endif
