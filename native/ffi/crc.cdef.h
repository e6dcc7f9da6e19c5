/* SPDX-License-Identifier: Apache-2.0 */
/* The checksum of snapshots: what ext_authz/compiler/assemble.py writes, and snapshot.c compares. */
#ifndef IDMESH_CRC_CDEF_H
#define IDMESH_CRC_CDEF_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32 as zlib computes it. crc is the value so far, 0 at the start. */
uint32_t idm_crc32(uint32_t crc, const void *data, size_t size);

#endif
