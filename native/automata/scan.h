/* SPDX-License-Identifier: Apache-2.0 */
#ifndef IDMESH_AUTOMATA_SCAN_H
#define IDMESH_AUTOMATA_SCAN_H

#include "writer.h"

/*
 * Steps after which a run that began in the state guess is the true one, wherever in the part that began; 0 if that
 * cannot be shown.
 */
uint32_t scan_prove(struct writer *w, uint32_t part, uint32_t *guess);
/*
 * Where a part written as rows forgets all but the last bytes of clean text, enter it through IDM_NODE_SCAN.
 * @return True if so.
 */
bool scan_write(struct writer *w, uint32_t part);

#endif
