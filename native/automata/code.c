// SPDX-License-Identifier: Apache-2.0
// Questions about expressions, answered on their prefix code.
#include "code.h"

// Words of the operator and its operands; *arguments counts the elements that follow.
static size_t head_size(const uint32_t *at, size_t *arguments)
{
	*arguments = 0;
	switch (at[0]) {
	case CODE_LITERAL:
		return 2 + at[1];
	case CODE_CLASS:
		return 2 + 2 * (size_t)at[1];
	case CODE_CAT:
	case CODE_ALT:
		*arguments = at[1];
		return 2;
	case CODE_REPEAT:
		*arguments = 1;
		return 3;
	case CODE_ASSERT:
		return 2;
	default:
		*arguments = 1;
		return 1;
	}
}

size_t code_size(const uint32_t *at)
{
	size_t size = 0, open = 1;

	while (open) {
		size_t arguments;

		size += head_size(at + size, &arguments);
		open += arguments - 1;
	}
	return size;
}

bool code_is_dot(const uint32_t *at)
{
	return at[0] == CODE_CLASS && at[1] == 2 && at[2] == 0 && at[3] == 9 && at[4] == 11 && at[5] == 0x10ffff;
}

bool code_is_dot_star(const uint32_t *at)
{
	return at[0] == CODE_STAR && code_is_dot(at + 1);
}

// A class of more than half of ASCII, the slash among it, can run over the borders that paths have.
static bool class_is_wide(const uint32_t *at)
{
	uint32_t held = 0;
	bool slash = false;

	if (at[0] != CODE_CLASS)
		return false;
	for (uint32_t i = 0; i < at[1]; i++) {
		uint32_t low = at[2 + 2 * i], high = at[3 + 2 * i];

		if (low > 127)
			break;
		if (high > 127)
			high = 127;
		held += high - low + 1;
		slash |= low <= '/' && '/' <= high;
	}
	return slash && held > 64;
}

bool code_is_wide(const uint32_t *at)
{
	if (at[0] == CODE_STAR || at[0] == CODE_PLUS)
		return class_is_wide(at + 1);
	return at[0] == CODE_REPEAT && at[2] == CODE_UNBOUNDED && class_is_wide(at + 3);
}

static bool head_is_clean(const uint32_t *at)
{
	if (at[0] == CODE_LITERAL) {
		for (uint32_t i = 0; i < at[1]; i++) {
			if (at[2 + i] == '\n')
				return false;
		}
	}
	if (at[0] == CODE_CLASS) {
		for (uint32_t i = 0; i < at[1]; i++) {
			if (at[2 + 2 * i] <= '\n' && '\n' <= at[3 + 2 * i])
				return false;
		}
	}
	return true;
}

bool code_is_clean(struct code code)
{
	size_t at = 0;

	while (at < code.size) {
		size_t arguments;

		if (!head_is_clean(code.at + at))
			return false;
		at += head_size(code.at + at, &arguments);
	}
	return true;
}
