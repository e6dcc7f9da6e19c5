/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranges were cut from nested prefixes; the trie shall have few rows again. Going down by halves, a prefix that one
 * identity fills is written; one that begins and ends with the same identity is written too and its holes below it,
 * which is how the ranges came about. What is written never depends on that guess being right: every half that has
 * another identity than the row above it gets rows of its own.
 */
#include "prefixes.h"

#include "idmesh/datapath.h"

#define NOBODY IDM_NONE // no row above
#define MAPPED ((idm_wide)0xffff << 32)

typedef unsigned __int128 idm_wide;

struct tree {
	const struct idm_identities *table;
	bool six;
	uint32_t count;
	struct idm_rows *ret;
};

static idm_wide first_of(const struct tree *tree, uint32_t index)
{
	const uint8_t *bytes = tree->six ? tree->table->ranges6[index].first : tree->table->ranges4[index].first;
	idm_wide value = 0;

	for (int i = 0; i < (tree->six ? 16 : 4); i++)
		value = value << 8 | bytes[i];
	return tree->six ? value : MAPPED | value;
}

static uint32_t identity_of(const struct tree *tree, uint32_t index)
{
	return tree->six ? tree->table->ranges6[index].identity : tree->table->ranges4[index].identity;
}

// The range that holds an address: the last in low..high that does not begin behind it.
static uint32_t range_of(const struct tree *tree, idm_wide address, uint32_t low, uint32_t high)
{
	while (low < high) {
		uint32_t middle = low + (high - low + 1) / 2;

		if (first_of(tree, middle) <= address)
			low = middle;
		else
			high = middle - 1;
	}
	return low;
}

static int emit(const struct tree *tree, idm_wide first, uint32_t bits, uint32_t identity)
{
	struct idm_prefix_key key = {.bits = bits};
	struct idm_prefix_row row = {.identity = identity};

	for (int i = 15; i >= 0; i--, first >>= 8)
		key.address.bytes[i] = (uint8_t)first;
	return idm_rows_add(tree->ret, &key, &row);
}

static bool is_filled(const struct tree *tree, uint32_t low, uint32_t high)
{
	for (uint32_t i = low; i < high; i++) {
		if (identity_of(tree, i) != identity_of(tree, high))
			return false;
	}
	return true;
}

// low and high: the ranges that hold the prefix's first and last address. above: what a lookup would find without us.
static int descend(const struct tree *tree, idm_wide first, uint32_t bits, uint32_t low, uint32_t high, uint32_t above)
{
	idm_wide half = bits < 128 ? (idm_wide)1 << (127 - bits) : 0;
	uint32_t here = identity_of(tree, low), middle;
	int r = 0;

	// IPv4 has rows of its own from here on.
	if (tree->six && bits == 96 && first == MAPPED)
		return 0;
	if (is_filled(tree, low, high))
		return here == above ? 0 : emit(tree, first, bits, here);
	if (here == identity_of(tree, high) && here != above) {
		r = emit(tree, first, bits, here);
		above = here;
	}
	middle = range_of(tree, first + half, low, high);
	r = r ? r : descend(tree, first, bits + 1, low, range_of(tree, first + half - 1, low, high), above);
	return r ? r : descend(tree, first + half, bits + 1, middle, high, above);
}

static int add_unknown4(struct tree *tree, uint32_t world)
{
	return emit(tree, MAPPED, 96, world);
}

int idm_prefixes_add(const struct idm_identities *table, struct idm_rows *ret)
{
	struct tree four = {.table = table, .count = table->range4_count, .ret = ret};
	struct tree six = {.table = table, .six = true, .count = table->range6_count, .ret = ret};
	int r;

	// Without a row of its own every IPv4 address would fall into a short IPv6 prefix: nobody stands above them.
	r = four.count ? descend(&four, MAPPED, 96, 0, four.count - 1, NOBODY) :
			 add_unknown4(&four, table->meta->world4);
	if (!r && six.count)
		r = descend(&six, 0, 0, 0, six.count - 1, table->meta->world6);
	return r;
}
