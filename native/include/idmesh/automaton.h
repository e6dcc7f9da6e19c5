/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layout of a matcher's blob: what native/automata writes and native/engine/matcher.c reads.
 *
 *   struct idm_matcher, struct idm_matcher_body
 *   literals: slots of an open-addressing hash over whole texts (or a short list)
 *   automata: struct idm_automaton[], each a graph of nodes
 *
 * A node is named by an *entry*: its offset from the start of the blob (a multiple of 8) with the kind in the low
 * three bits. Every kind but IDM_NODE_LOOP consumes at least one byte or ends the match, and what follows a loop
 * consumes, so a match always ends. All numbers are little endian.
 */
#ifndef IDMESH_AUTOMATON_H
#define IDMESH_AUTOMATON_H

#include <stdint.h>

#define IDM_MATCHER_MAGIC 0x314d4449u /* "IDM1" */

enum idm_node_kind {
	IDM_NODE_ROW = 0,    /* uint32_t accept, then an entry for each byte class */
	IDM_NODE_SPARSE = 1, /* struct idm_sparse */
	IDM_NODE_CHAIN = 2,  /* struct idm_chain: literal bytes */
	IDM_NODE_REST = 3,   /* no node: offset / 8 is the outcome if the rest of the text matches ".*" */
	IDM_NODE_FRAME = 4,  /* struct idm_frame: as REST, but the rest also ends in a literal */
	IDM_NODE_LOOP = 5,   /* struct idm_loop: a small strongly connected part, stepped by shifts */
	IDM_NODE_SCAN = 6,   /* struct idm_scan: rows that forget all but the last bytes, stepped in lanes */
	IDM_NODE_DEAD = 7,   /* no node: no match */
};
#define IDM_NODE_KINDS 7u

struct idm_matcher_body {
	uint32_t literals;       /* struct idm_literal[literal_count]; empty slots have text 0 */
	uint32_t literal_count;  /* a power of two if hashed */
	uint32_t literal_probes; /* longest run; 0: a plain list */
	uint32_t literal_max;    /* longest literal, bytes */
	uint32_t automata;       /* struct idm_automaton[automaton_count] */
	uint32_t automaton_count;
};

struct idm_literal {
	uint32_t hash; /* high half of the text's hash */
	uint32_t text; /* offset of the bytes; 0: empty slot */
	uint32_t size;
	uint32_t outcome;
};

struct idm_automaton {
	uint32_t start;  /* entry */
	uint32_t flags;  /* IDM_AUTOMATON_* */
	uint32_t classes; /* number of byte classes, at least 1 */
	uint32_t map;    /* uint8_t[256]: class of a byte, from 0 */
};
#define IDM_AUTOMATON_BACKWARD 1u /* reads the text from its end */

#define IDM_SPARSE_MAX 16u
struct idm_sparse {
	uint32_t accept; /* outcome if the text ends here, or IDM_NONE */
	uint32_t other;  /* entry for classes that are not listed */
	uint32_t count;
	uint8_t keys[IDM_SPARSE_MAX]; /* classes; unused ones repeat the last */
	uint32_t targets[]; /* count entries */
};

struct idm_chain {
	uint32_t accept;
	uint32_t next; /* entry */
	uint32_t size; /* at least 1 */
	uint8_t bytes[]; /* in the text's order, also backwards */
};

struct idm_frame {
	uint32_t outcome;
	uint32_t size; /* at least 1 */
	uint8_t bytes[]; /* what stands at the far end of the text */
};

/*
 * Members of a loop are numbers 0 to 9; member m is at shift 6 m. A step is state = table[byte] >> state & 63:
 * the load does not depend on the state, so a step costs two cycles. IDM_LOOP_OUT: the byte leads out of the loop.
 */
#define IDM_LOOP_MEMBERS 9u
#define IDM_LOOP_OUT 54u
#define IDM_LOOP_WARM_MAX 16u
struct idm_loop {
	uint32_t table;   /* uint64_t[256] */
	uint32_t start;   /* shift of the member entered */
	uint32_t members; /* struct idm_loop_member[count] */
	uint32_t count;   /* the table knows no other members */
	uint32_t guess;   /* shift of the member a lane begins in */
	uint32_t warm;    /* as in struct idm_scan; 0: not for lanes */
};
struct idm_loop_member {
	uint32_t accept;
	uint32_t exit; /* entry of kind ROW, SPARSE or DEAD that takes the byte that led out */
};

#define IDM_SCAN_WARM_MAX 48u
struct idm_scan {
	uint32_t row;   /* entry of kind ROW: where the text is */
	uint32_t guess; /* entry of kind ROW: where a lane begins */
	uint32_t warm;  /* after so many bytes a lane is where it would be, had it read all */
	uint32_t reserved;
};

#endif
