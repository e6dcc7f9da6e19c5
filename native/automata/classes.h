/* SPDX-License-Identifier: Apache-2.0 */
/* Classes of bytes, and what an assertion sees of the byte before it. */
#ifndef IDMESH_AUTOMATA_CLASSES_H
#define IDMESH_AUTOMATA_CLASSES_H

#include "dfa.h"

enum dfa_before { BEFORE_UNKNOWN = 0, BEFORE_BEGIN, BEFORE_NEWLINE, BEFORE_WORD, BEFORE_OTHER };

enum dfa_before before_of(uint8_t byte);
/* Sets map, classes and byte_of. */
void classes_find(struct dfa *dfa);

#endif
