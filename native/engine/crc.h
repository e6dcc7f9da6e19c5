/* SPDX-License-Identifier: Apache-2.0 */
#ifndef IDMESH_ENGINE_CRC_H
#define IDMESH_ENGINE_CRC_H

#include <stddef.h>
#include <stdint.h>

/* CRC-32 as zlib computes it. crc is the value so far, 0 at the start. */
uint32_t idm_crc32(uint32_t crc, const void *data, size_t size);

#endif
