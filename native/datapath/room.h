/* SPDX-License-Identifier: Apache-2.0 */
/* Arrays that grow. */
#ifndef IDMESH_DATAPATH_ROOM_H
#define IDMESH_DATAPATH_ROOM_H

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

/**
 * Make room for at least as many items as needed.
 * @param items Address of the array's pointer; it may move.
 * @param room Items that fit.
 * @return 0 or -ENOMEM: then everything is as it was.
 */
static inline int idm_make_room(void **items, uint32_t *room, uint64_t needed, size_t size)
{
	uint64_t wanted = *room ? *room : 256;
	void *grown;

	if (needed <= *room)
		return 0;
	while (wanted < needed)
		wanted *= 2;
	grown = wanted > UINT32_MAX ? NULL : realloc(*items, wanted * size);
	if (!grown)
		return -ENOMEM;
	*items = grown;
	*room = (uint32_t)wanted;
	return 0;
}

#endif
