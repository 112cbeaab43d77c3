"""Which addresses Python's `ipaddress` takes for global, at and around all special blocks.

    python make_addresses.py ../addresses.csv
"""

import ipaddress
import random
import sys

random.seed(0)
BLOCKS = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.168.0.0/16
198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 255.255.255.255/32 8.8.8.0/24
::/128 ::1/128 ::ffff:0:0/96 64:ff9b:1::/48 100::/64 2001::/32 2001:2::/48 2001:db8::/32 3fff::/20 fc00::/7 fe80::/10
ff00::/8 2606:4700::/32 2a00::/12
""".split()
# What this project refuses though Python does not, and why.
STRICTER = {
    "192.0.0.0/24": "protocol assignments",
    "192.88.99.0/24": "6to4 relays, deprecated",
    "2001::/23": "protocol assignments: none of them serves images",
    "2002:0a00::/24": "6to4 of 10.0.0.0/8",
    "64:ff9b::10.0.0.0/104": "NAT64 of 10.0.0.0/8",
    "3fff::/20": "documentation since RFC 9637",
    "4000::/3": "not assigned",
    "8000::/1": "not assigned, or special",
    "::/3": "not assigned, or special",
}

rows = {}
for block in BLOCKS:
    network = ipaddress.ip_network(block)
    first, last = int(network[0]), int(network[-1])
    top = 2 ** network.max_prefixlen - 1
    numbers = {first - 1, first, last, last + 1, random.randint(first, last), random.randint(first, last)}
    for number in sorted(n for n in numbers if 0 <= n <= top):
        make = ipaddress.IPv4Address if network.version == 4 else ipaddress.IPv6Address
        address = make(number)
        mapped = getattr(address, "ipv4_mapped", None) or address
        public = mapped.is_global and not mapped.is_multicast
        if any(address.version == n.version and address in n for n in map(ipaddress.ip_network, STRICTER)) and mapped is address:
            public = False
        rows[str(address)] = public
for nat, v4 in (("64:ff9b::", "8.8.8.8"), ("64:ff9b::", "10.1.2.3"), ("64:ff9b::", "169.254.169.254")):
    rows[str(ipaddress.IPv6Address(int(ipaddress.ip_address(nat)) + int(ipaddress.ip_address(v4))))] = ipaddress.ip_address(v4).is_global
with open(sys.argv[1], "w") as file:
    file.write("address,public\n")
    file.writelines(f"{address},{str(public).lower()}\n" for address, public in rows.items())
print(len(rows))
