/* SPDX-License-Identifier: Apache-2.0 */
#ifndef IDMESH_ENGINE_PATH_H
#define IDMESH_ENGINE_PATH_H

#include "internal.h"

/* Longest path that is judged, before and after it is rewritten. */
#define IDM_PATH_MAX 16384

/* Quick look: true if nothing in the path could need rewriting. False says nothing. */
bool idm_path_is_plain(struct idm_bytes path);
/* Size at most IDM_PATH_MAX. */
bool idm_path_is_canonical(struct idm_bytes path);
/* idm_path_canonicalize() into room bytes; a longer result is refused too. */
int idm_path_rewrite(struct idm_bytes path, char *out, size_t room, size_t *out_size);

#endif
