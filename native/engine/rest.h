/* SPDX-License-Identifier: Apache-2.0 */
#ifndef IDMESH_ENGINE_REST_H
#define IDMESH_ENGINE_REST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whether RE2's ".*" matches all of a text: characters of UTF-8 as RE2 reads them, but no newline. */
bool rest_is_clean(const uint8_t *text, size_t size);

#endif
