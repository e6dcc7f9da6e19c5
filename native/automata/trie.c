// SPDX-License-Identifier: Apache-2.0
// Patterns that begin alike share their beginning: a trie over elements, literals byte by byte. Compiled from the
// leaves up; nodes are made after their parents, so going through them backwards meets children first.
#include "nfa.h"

#include <string.h>

struct node {
	const uint32_t *element; // NULL: the byte
	uint32_t size;
	uint8_t byte;
	bool clean;
	bool scanning;
	uint32_t parent;
	uint32_t first_child;
	uint32_t next_sibling;
	uint32_t terminal; // outcome of the pattern that ends here, or NFA_NONE
	uint32_t owner;
	uint32_t same_slot; // next node of the same hash slot
};

struct trie {
	struct nfa *nfa;
	VEC(struct node) nodes;
	uint32_t *slots;
	uint32_t slot_count;
	VEC(struct node) elements; // of the pattern at work, in reading order
	uint32_t *entries;
};

static void add_element(struct trie *trie, const uint32_t *at, uint32_t size, uint8_t byte)
{
	*VEC_ADD(trie->nfa->pool, trie->elements) = (struct node){.element = at, .size = size, .byte = byte};
}

static bool same_element(const struct node *a, const struct node *b)
{
	if (!a->element || !b->element)
		return a->element == b->element && a->byte == b->byte;
	return a->size == b->size && !memcmp(a->element, b->element, a->size * sizeof(*a->element));
}

static const uint32_t dot_star[] = {CODE_STAR, CODE_CLASS, 2, 0, 9, 11, 0x10ffff};

static void split_element(struct trie *trie, const uint32_t *at)
{
	if (at[0] == CODE_LITERAL) {
		for (uint32_t i = 0; i < at[1]; i++)
			add_element(trie, NULL, 0, (uint8_t)at[2 + i]);
	} else if (at[0] == CODE_PLUS && code_is_dot(at + 1)) {
		// ".+" as "..*", which has the part that matters in common with others.
		add_element(trie, at + 1, (uint32_t)code_size(at + 1), 0);
		add_element(trie, dot_star, sizeof(dot_star) / sizeof(*dot_star), 0);
	} else {
		add_element(trie, at, (uint32_t)code_size(at), 0);
	}
}

static void turn(struct trie *trie)
{
	struct node *at = trie->elements.at;

	for (size_t i = 0, j = trie->elements.count; i + 1 < j; i++) {
		struct node swap = at[i];

		at[i] = at[--j];
		at[j] = swap;
	}
}

static void split_pattern(struct trie *trie, const struct pattern *pattern)
{
	trie->elements.count = 0;
	for (size_t at = 0; at < pattern->code.size; at += code_size(pattern->code.at + at))
		split_element(trie, pattern->code.at + at);
	if (trie->nfa->backward)
		turn(trie);
}

static uint32_t slot_of(const struct trie *trie, uint32_t parent, const struct node *element)
{
	uint64_t hash = parent * 0x9e3779b97f4a7c15ull + element->byte + 1;

	if (element->element) {
		for (uint32_t i = 0; i < element->size; i++)
			hash = (hash ^ element->element[i]) * 0xff51afd7ed558ccdull;
	}
	return (uint32_t)((hash ^ hash >> 29) * 0xc4ceb9fe1a85ec53ull >> 32) & (trie->slot_count - 1);
}

static uint32_t child(struct trie *trie, uint32_t parent, const struct node *element)
{
	uint32_t slot = slot_of(trie, parent, element), id;
	struct node *node;

	for (id = trie->slots[slot]; id; id = trie->nodes.at[id].same_slot) {
		if (trie->nodes.at[id].parent == parent && same_element(&trie->nodes.at[id], element))
			return id;
	}
	node = VEC_ADD(trie->nfa->pool, trie->nodes);
	id = (uint32_t)trie->nodes.count - 1;
	*node = *element;
	node->parent = parent;
	node->terminal = NFA_NONE;
	node->owner = NFA_NONE;
	node->clean = true;
	node->scanning = trie->nodes.at[parent].scanning || (element->element && code_is_wide(element->element));
	node->same_slot = trie->slots[slot];
	trie->slots[slot] = id;
	node->next_sibling = trie->nodes.at[parent].first_child;
	trie->nodes.at[parent].first_child = id;
	return id;
}

static void insert(struct trie *trie, const struct pattern *pattern)
{
	uint32_t id = 0;

	split_pattern(trie, pattern);
	for (size_t i = 0;; i++) {
		struct node *node = &trie->nodes.at[id];
		const struct node *element = &trie->elements.at[i];

		node->clean &= pattern->clean;
		if (pattern->outcome < node->owner)
			node->owner = pattern->outcome;
		if (i == trie->elements.count)
			break;
		// ".*.*" is ".*"
		if (i && element->element && code_is_dot_star(element->element) && same_element(element, element - 1))
			continue;
		id = child(trie, id, element);
	}
	if (pattern->outcome < trie->nodes.at[id].terminal)
		trie->nodes.at[id].terminal = pattern->outcome;
}

static void own(struct trie *trie, const struct node *node)
{
	trie->nfa->owner = node->owner;
	trie->nfa->clean = node->clean;
	trie->nfa->scanning = node->scanning;
}

// If all that follows a node is one literal and the end of one pattern: that literal in the text's order.
static uint32_t make_frame(struct trie *trie, const struct node *node)
{
	struct nfa *nfa = trie->nfa;
	struct frame frame = {.first = (uint32_t)nfa->frame_bytes.count};

	if (node->terminal != NFA_NONE)
		return NFA_NONE;
	for (uint32_t id = node->first_child; id; id = node->first_child) {
		node = &trie->nodes.at[id];
		if (node->next_sibling || node->element || (node->terminal != NFA_NONE && node->first_child)) {
			nfa->frame_bytes.count = frame.first;
			return NFA_NONE;
		}
		*VEC_ADD(nfa->pool, nfa->frame_bytes) = node->byte;
	}
	frame.size = (uint32_t)nfa->frame_bytes.count - frame.first;
	for (uint32_t i = 0; nfa->backward && i < frame.size / 2; i++) {
		uint8_t *bytes = nfa->frame_bytes.at + frame.first, swap = bytes[i];

		bytes[i] = bytes[frame.size - 1 - i];
		bytes[frame.size - 1 - i] = swap;
	}
	*VEC_ADD(nfa->pool, nfa->frames) = frame;
	return (uint32_t)nfa->frames.count - 1;
}

static uint32_t either(struct nfa *nfa, uint32_t one, uint32_t other)
{
	return one == NFA_NONE ? other : other == NFA_NONE ? one : nfa_emit(nfa, NFA_SPLIT, one, other);
}

// What follows a node but its own end: entries[] of its children joined.
static uint32_t join_children(struct trie *trie, const struct node *node)
{
	uint32_t entry = NFA_NONE;

	for (uint32_t id = node->first_child; id; id = trie->nodes.at[id].next_sibling) {
		own(trie, node);
		entry = either(trie->nfa, entry, trie->entries[id]);
	}
	return entry;
}

static uint32_t match_of(struct trie *trie, const struct node *node)
{
	if (node->terminal == NFA_NONE)
		return NFA_NONE;
	trie->nfa->owner = node->terminal;
	return nfa_emit(trie->nfa, NFA_MATCH, NFA_NONE, NFA_NONE);
}

static uint32_t compile_dot_star(struct trie *trie, const struct node *node)
{
	uint32_t frame = make_frame(trie, node), children = join_children(trie, node), rest = NFA_NONE, loop = NFA_NONE;

	own(trie, node);
	if (frame != NFA_NONE)
		return nfa_rest(trie->nfa, frame, children);
	if (children != NFA_NONE)
		loop = nfa_dot_star(trie->nfa, children);
	if (node->terminal != NFA_NONE) {
		trie->nfa->owner = node->terminal;
		rest = nfa_rest(trie->nfa, NFA_NONE, NFA_NONE);
	}
	own(trie, node);
	return either(trie->nfa, rest, loop);
}

static uint32_t compile_node(struct trie *trie, const struct node *node)
{
	struct nfa *nfa = trie->nfa;
	uint32_t next;

	own(trie, node);
	if (node->element && code_is_dot_star(node->element))
		return compile_dot_star(trie, node);
	next = join_children(trie, node);
	own(trie, node);
	if (next == NFA_NONE) {
		next = match_of(trie, node);
	} else if (node->terminal != NFA_NONE) {
		uint32_t match = match_of(trie, node);

		own(trie, node);
		next = nfa_emit(nfa, NFA_SPLIT, match, next);
	}
	own(trie, node);
	if (!node->parent && node == trie->nodes.at)
		return next;
	return node->element ? nfa_compile(nfa, node->element, next) : nfa_byte(nfa, node->byte, node->byte, next);
}

void trie_compile(struct nfa *nfa, const struct pattern *const *patterns, uint32_t count)
{
	struct trie trie = {.nfa = nfa, .slot_count = 1024};
	struct node *root = VEC_ADD(nfa->pool, trie.nodes);

	*root = (struct node){.terminal = NFA_NONE, .owner = NFA_NONE, .clean = true};
	while (trie.slot_count < count * 16u && trie.slot_count < 1u << 20)
		trie.slot_count *= 2;
	trie.slots = pool_alloc(nfa->pool, trie.slot_count * sizeof(*trie.slots));
	// An end for a pattern whose last element repeats the one before is read past the array otherwise.
	add_element(&trie, NULL, 0, 0);
	for (uint32_t i = 0; i < count; i++)
		insert(&trie, patterns[i]);
	trie.entries = pool_alloc(nfa->pool, trie.nodes.count * sizeof(*trie.entries));
	for (size_t id = trie.nodes.count; id-- > 0;)
		trie.entries[id] = compile_node(&trie, &trie.nodes.at[id]);
	nfa->start = trie.entries[0];
	VEC_DEINIT(nfa->pool, trie.nodes);
	VEC_DEINIT(nfa->pool, trie.elements);
	pool_free(nfa->pool, trie.slots, trie.slot_count * sizeof(*trie.slots));
}
