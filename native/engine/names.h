/* SPDX-License-Identifier: Apache-2.0 */
/* Host names as the matchers want them. */
#ifndef IDMESH_ENGINE_NAMES_H
#define IDMESH_ENGINE_NAMES_H

#include "internal.h"

/* Longest name looked at, with trailing dot: RFC 1035 allows 255 bytes on the wire; longer ones match nothing. */
#define IDM_NAME_MAX 256

/* Lower case without trailing dot, in buffer (IDM_NAME_MAX bytes). Size 0: empty or too long. */
struct idm_bytes idm_sni_normal(struct idm_bytes name, char *buffer);
/* Lower case with trailing dot. Size 0: too long. */
struct idm_bytes idm_dns_normal(struct idm_bytes name, char *buffer);

#endif
