// SPDX-License-Identifier: Apache-2.0
// Addresses between text, sockets and the engine's bytes.

#include "address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

static void unmap(struct address *address)
{
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

	if (address->family != 6 || memcmp(address->bytes, mapped, sizeof(mapped)))
		return;
	memmove(address->bytes, address->bytes + 12, 4);
	memset(address->bytes + 4, 0, 12);
	address->family = 4;
}

bool address_parse_port(const char *text, uint16_t *ret)
{
	unsigned int port = 0;

	if (!*text)
		return false;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return false;
		port = port * 10 + (unsigned int)(*text - '0');
		if (port > 65535)
			return false;
	}
	*ret = (uint16_t)port;
	return port != 0;
}

static bool parse_host(const char *text, struct address *ret)
{
	if (inet_pton(AF_INET, text, ret->bytes) == 1) {
		ret->family = 4;
		return true;
	}
	if (inet_pton(AF_INET6, text, ret->bytes) != 1)
		return false;
	ret->family = 6;
	unmap(ret);
	return true;
}

// "[::1]" or "[::1]:80"; text is ours to cut.
static bool parse_bracketed(char *text, struct address *ret)
{
	char *end = strchr(text, ']');

	if (!end)
		return false;
	*end++ = 0;
	if (*end == ':' ? !address_parse_port(end + 1, &ret->port) : *end)
		return false;
	return parse_host(text + 1, ret);
}

bool address_parse(struct idm_bytes text, struct address *ret)
{
	char copy[ADDRESS_TEXT_MAX];
	char *colon;

	memset(ret, 0, sizeof(*ret));
	if (!text.size || text.size >= sizeof(copy) || memchr(text.ptr, 0, text.size))
		return false;
	memcpy(copy, text.ptr, text.size);
	copy[text.size] = 0;
	if (copy[0] == '[')
		return parse_bracketed(copy, ret);
	colon = strchr(copy, ':');
	if (!colon || strchr(colon + 1, ':'))
		return parse_host(copy, ret);
	*colon = 0;
	return address_parse_port(colon + 1, &ret->port) && parse_host(copy, ret) && ret->family == 4;
}

static bool below(const uint8_t *bytes, unsigned int bits, unsigned int width)
{
	for (unsigned int i = bits; i < width; i++)
		if (bytes[i / 8] & (0x80u >> (i % 8)))
			return false;
	return true;
}

bool network_parse(const char *text, struct network *ret)
{
	const char *slash = strchr(text, '/');
	size_t size = slash ? (size_t)(slash - text) : strlen(text);
	unsigned int width;
	uint16_t bits;

	if (!address_parse((struct idm_bytes){text, size}, &ret->base) || ret->base.port)
		return false;
	width = ret->base.family == 4 ? 32 : 128;
	ret->bits = (uint8_t)width;
	if (!slash)
		return true;
	if (!strcmp(slash, "/0"))
		bits = 0;
	else if (!address_parse_port(slash + 1, &bits) || bits > width)
		return false;
	ret->bits = (uint8_t)bits;
	return below(ret->base.bytes, bits, width);
}

bool network_contains(const struct network *network, const struct address *address)
{
	unsigned int whole = network->bits / 8, rest = network->bits % 8;
	uint8_t mask = (uint8_t)(0xff00u >> rest);

	if (network->base.family != address->family || memcmp(network->base.bytes, address->bytes, whole))
		return false;
	return !rest || (network->base.bytes[whole] & mask) == (address->bytes[whole] & mask);
}

bool address_from_socket(const struct sockaddr_storage *socket, struct address *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (socket->ss_family == AF_INET) {
		const struct sockaddr_in *v4 = (const void *)socket;

		ret->family = 4;
		ret->port = ntohs(v4->sin_port);
		memcpy(ret->bytes, &v4->sin_addr, 4);
		return true;
	}
	if (socket->ss_family != AF_INET6)
		return false;
	const struct sockaddr_in6 *v6 = (const void *)socket;

	ret->family = 6;
	ret->port = ntohs(v6->sin6_port);
	memcpy(ret->bytes, &v6->sin6_addr, 16);
	unmap(ret);
	return true;
}

void address_format(const struct address *address, char *ret)
{
	if (!address->family || !inet_ntop(address->family == 4 ? AF_INET : AF_INET6, address->bytes, ret,
					   ADDRESS_TEXT_MAX))
		*ret = 0;
}
