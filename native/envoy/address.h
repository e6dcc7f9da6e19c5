/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses as the engine takes them: a family and bytes in network order, never text on the request path. */
#ifndef IDMESH_ENVOY_ADDRESS_H
#define IDMESH_ENVOY_ADDRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "idmesh/engine.h"

#define ADDRESS_TEXT_MAX 64

struct address {
	uint8_t family; /* 4, 6, or 0: none */
	uint8_t reserved;
	uint16_t port; /* host order; 0: none */
	uint8_t bytes[16];
};

struct network {
	struct address base;
	uint8_t bits;
};

/* "10.0.0.1", "10.0.0.1:80", "::1", "[::1]:80". False if text is anything else. */
bool address_parse(struct idm_bytes text, struct address *ret);
/* 1 to 65535, digits only. */
bool address_parse_port(const char *text, uint16_t *ret);
/* "10.0.0.0/8"; a bare address counts as its whole length. Host bits must be zero. */
bool network_parse(const char *text, struct network *ret);
bool network_contains(const struct network *network, const struct address *address);
/* False for anything but IPv4 and IPv6. IPv4-mapped addresses become IPv4. */
bool address_from_socket(const struct sockaddr_storage *socket, struct address *ret);
/* Without port. Room for ADDRESS_TEXT_MAX bytes; "" for none. */
void address_format(const struct address *address, char *ret);

#endif
