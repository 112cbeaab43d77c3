"""What Hugging Face templates use, one thing at a time, as transformers renders it.

    python make_templates.py ../prompts/templates.json

Each row has a template, variables, and the text; or `"text": null` where rendering is refused.
"""

import json
import sys

from transformers.utils.chat_template_utils import _compile_jinja_template

VARIABLES = {
    "bos_token": "<s>",
    "name": "World",
    "text": "  Hello, World! hello  ",
    "words": ["pear", "apple", "fig", "apple"],
    "numbers": [3, 1, 2, 2.5, -4],
    "empty": [],
    "nothing": None,
    "yes": True,
    "person": {"name": "Ada", "age": 36, "tags": ["x", "y"], "none": None, "nested": {"deep": [1, {"a": "é"}]}},
    "people": [{"name": "Ada", "age": 36, "city": "London"}, {"name": "Alan", "age": 41}, {"name": "Grace", "age": 36, "city": "New York"}],
    "odd": "quote ' and \" <tag> & \\ back\nline\ttab \u200b \u00a0 \U0001f469\u200d\U0001f467 \x7f é 日本",
}
TEMPLATES = r"""
{{ name }}|{{ missing }}|{{ nothing }}|{{ yes }}|{{ not yes }}|{{ 1 }}|{{ 1.0 }}|{{ 1e20 }}|{{ 1/3 }}
{{ words }}|{{ person }}|{{ numbers }}|{{ empty }}|{{ {'a': none} }}|{{ [true, none, 'x'] }}
{{ odd }}
{{ [odd] }}
{{ odd | tojson }}
{{ person | tojson }}
{{ person | tojson(indent=2) }}
{{ people | tojson(indent=4) }}
{{ [1.0, 1e-7, 1e20, -0.5, none, true, 'é'] | tojson }}
{{ {} | tojson(indent=2) }}{{ [] | tojson(indent=2) }}{{ {'a': []} | tojson(indent=1) }}
{{ odd | tojson(ensure_ascii=True) }}
{{ person | tojson(separators=(',', ':')) }}
{{ {'b': 1, 'a': 2} | tojson(sort_keys=True) }}
{{ text.strip() }}|{{ text.lstrip() }}|{{ text.rstrip() }}|{{ text.strip(' !') }}|{{ text.strip().strip('Ho') }}
{{ text.upper() }}|{{ text.lower() }}|{{ text.title() }}|{{ text.strip().capitalize() }}|{{ text.swapcase() }}
{{ 'a,b,,c'.split(',') }}|{{ ' a  b '.split() }}|{{ 'a,b,c'.split(',', 1) }}|{{ 'a,b,c'.rsplit(',', 1) }}|{{ 'ab'.split('x') }}
{{ 'a\nb\r\nc'.splitlines() }}|{{ 'key=value'.partition('=') | join('|') }}|{{ 'a=b=c'.rpartition('=')[0] }}
{{ text.startswith('  He') }}|{{ text.endswith(('lo', '  ')) }}|{{ 'abc'.startswith(('x', 'a')) }}
{{ text.replace('l', 'L') }}|{{ text.replace('l', 'L', 1) }}|{{ text.find('World') }}|{{ text.count('l') }}|{{ text.index('H') }}|{{ text.rfind('l') }}
{{ 'abc'.isalpha() }}|{{ '12'.isdigit() }}|{{ 'a1'.isalnum() }}|{{ ' '.isspace() }}|{{ 'A'.isupper() }}|{{ 'a'.islower() }}
{{ ', '.join(words) }}|{{ words | join(', ') }}|{{ numbers | join }}|{{ people | join(', ', attribute='name') }}
{{ 'x'.center(5) }}|{{ 'x'.ljust(3) }}|{{ 'x'.rjust(3) }}|{{ '7'.zfill(3) }}
{{ '{} and {}'.format(1, 'b') }}|{{ '{a}'.format(a=2) }}|{{ '%s-%s' | format('a', 'b') }}
{{ 'prefix-x'.removeprefix('prefix-') }}|{{ 'x.txt'.removesuffix('.txt') }}
{% for key, value in person.items() %}{{ key }}={{ value }};{% endfor %}
{% for key in person %}{{ key }};{% endfor %}{{ person.keys() | list }}|{{ person.values() | list }}
{{ person.get('name') }}|{{ person.get('x') }}|{{ person.get('x', 'default') }}|{{ person['age'] }}|{{ person.nested.deep[1].a }}
{% for key, value in person | dictsort %}{{ key }};{% endfor %}{% for k, v in person | items %}{{ k }},{% endfor %}
{{ words[0] }}|{{ words[-1] }}|{{ words[1:] }}|{{ words[:-1] }}|{{ words[::-1] }}|{{ words[1:3] }}|{{ text[2:7] }}|{{ text[::-1] }}|{{ name[-1] }}
{{ words | length }}|{{ words | count }}|{{ text | length }}|{{ person | length }}
{{ words | first }}|{{ words | last }}|{{ words | reverse | list }}|{{ words | sort }}|{{ words | unique | list }}|{{ numbers | sort(reverse=true) }}
{{ numbers | sum }}|{{ numbers | min }}|{{ numbers | max }}|{{ -3 | abs }}|{{ 2.567 | round(2) }}|{{ 2.5 | round }}|{{ 7 | float }}|{{ '3' | int }}|{{ 'x' | int(5) }}|{{ 3.9 | int }}
{{ people | map(attribute='name') | list }}|{{ words | map('upper') | list }}|{{ people | map(attribute='city', default='?') | list }}
{{ people | selectattr('age', 'equalto', 36) | map(attribute='name') | list }}|{{ people | rejectattr('city', 'defined') | list }}
{{ people | selectattr('city') | list | length }}|{{ numbers | select('odd') | list }}|{{ numbers | reject('>', 2) | list }}
{% for city, group in people | selectattr('city', 'defined') | groupby('age') %}{{ city }}:{{ group | length }};{% endfor %}
{{ text | trim }}|{{ text | upper }}|{{ text | lower }}|{{ text | title }}|{{ 'abc' | capitalize }}|{{ 'abc' | replace('b', 'x') }}
{{ missing | default('d') }}|{{ nothing | default('d') }}|{{ nothing | default('d', true) }}|{{ '' | default('d', true) }}|{{ missing | d(3) }}
{{ 'a<b>&' | escape }}|{{ 'a<b>' | e }}|{{ '<b>' | safe }}|{{ 'a\nb' | indent(2) }}|{{ 'a\nb' | indent(2, true) }}
{{ 3 | string }}|{{ none | string }}|{{ true | string }}|{{ [1, 'a'] | string }}|{{ 1.5 | string }}
{{ [1, 2, 3, 4, 5] | batch(2) | list }}|{{ 'abc' | list }}
{{ 1 + 2 }}|{{ 7 // 2 }}|{{ 7 % 3 }}|{{ 2 ** 3 }}|{{ 7 / 2 }}|{{ 6 / 2 }}|{{ -7 // 2 }}|{{ 'a' ~ 1 ~ none }}|{{ 'ab' * 2 }}|{{ [1] + [2] }}
{{ 1 < 2 < 3 }}|{{ 'a' in 'abc' }}|{{ 'x' not in words }}|{{ 'name' in person }}|{{ 1 == 1.0 }}|{{ not false and true or false }}
{{ 'a' if yes else 'b' }}|{{ 'a' if missing else 'b' }}|{{ 'a' if false }}|{{ missing is defined }}|{{ nothing is none }}
{{ name is string }}|{{ person is mapping }}|{{ words is iterable }}|{{ words is sequence }}|{{ name is iterable }}|{{ 1 is number }}|{{ 1 is integer }}|{{ 1.5 is float }}|{{ yes is boolean }}|{{ yes is true }}|{{ 3 is odd }}|{{ 4 is divisibleby(2) }}|{{ 1 is eq 1 }}|{{ 'a' is in ['a'] }}|{{ missing is undefined }}
{% for x in words %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}
{% for x in words %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x) }};{% endfor %}{% for x in empty %}x{% else %}none{% endfor %}
{% for x in numbers if x > 1 %}{{ x }}{{ loop.index }};{% endfor %}{% for i in range(3) %}{{ i }}{% endfor %}{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}
{% for x in words %}{% if x == 'apple' %}{% continue %}{% endif %}{{ x }};{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}
{% for p in people %}{% for t in words %}{{ loop.index }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %};{% endfor %}
{% set ns = namespace(count=0, list=[]) %}{% for x in words %}{% set ns.count = ns.count + 1 %}{% set ns.list = ns.list + [x] %}{% endfor %}{{ ns.count }}{{ ns.list }}
{% set x = 1 %}{% for i in words %}{% set x = 2 %}{% endfor %}{{ x }}{% if true %}{% set x = 3 %}{% endif %}{{ x }}
{% set block %}  in a block {{ name }}{% endset %}[{{ block }}]{% set a, b = 1, 2 %}{{ a + b }}{% set c = (words | length) %}{{ c }}
{% macro greet(who, mark='!') %}Hi {{ who }}{{ mark }}{% endmacro %}{{ greet('A') }}|{{ greet('B', mark='?') }}|{{ greet(who='C') }}
{% macro rec(n) %}{{ n }}{% if n > 0 %}{{ rec(n - 1) }}{% endif %}{% endmacro %}{{ rec(3) }}
{% macro wrap() %}[{{ caller() }}]{% endmacro %}{% call wrap() %}inside{% endcall %}
{% macro kw(a, b=2) %}{{ a }}{{ b }}{{ kwargs }}{% endmacro %}{{ kw(1, c=3) }}
{% filter upper %}loud {{ name }}{% endfilter %}
{% if words and not empty %}a{% elif nothing %}b{% else %}c{% endif %}{% if person.age >= 36 and 'x' in person.tags %}yes{% endif %}
{# a comment #}x{#- another -#} y
a  {%- if true -%}  b  {%- endif -%}  c
{% raw %}{{ not rendered }}{% endraw %}
{%- for m in people %}
{{ m.name }}
{%- endfor %}
{% generation %}marked{% endgeneration %}
{{ raise_exception('refused') }}
{{ strftime_now('%Y') | length }}|{{ strftime_now('%d %b %Y') | length }}
{{ words.index('fig') }}|{{ words.count('apple') }}
{% set l = [1] %}{% set _ = l.append(2) %}{{ l }}
{{ dict(a=1, b='c') }}|{{ dict(person, age=1).age }}
{{ people[0].name ~ ' ' ~ people[1]['name'] }}|{{ people[-1].get('city', '') }}|{{ (people | last).name }}
{{ person.missing is defined }}|{{ person.missing }}|{{ person.none }}
{{ 'yes' if person.tags | select('equalto', 'x') | list else 'no' }}
{{ words | map('length') | sum }}|{{ numbers | map('string') | join('+') }}
{{ '\u0041' }}|{{ 'tab\tnew\\n' }}|{{ "it's" }}|{{ 'a' 'b' }}
{{ 'ÄÖ'.lower() }}|{{ 'straße'.upper() }}|{{ '日本' | length }}
{{ '  a b'.rsplit(none, 1) }}|{{ ' a  b c '.rsplit() }}|{{ 'a' is sequence }}|{{ {} is sequence }}|{{ 3 is sequence }}
{{ none == nothing }}|{{ [] == empty }}|{{ {'a': 1} == {'a': 1} }}|{{ [1, 2] < [1, 3] }}|{{ 'a' < 'b' }}
{{ people | map(attribute='age') | unique | list }}|{{ people | sort(attribute='age,name') | map(attribute='name') | list }}|{{ words | sort(case_sensitive=true) | first }}
{{ [[1, 2], [3]] | sum(start=[]) }}
{{ text | trim | replace('hello', '') | trim }}|{{ text.split(',')[0].strip() }}|{{ (text ~ name).strip()[:5] }}
{{- '\n' -}} x {{- "\n\n" }}
{{ '%s is %d' % ('a', 3) }}
{{ (1, 'a') }}
{{ 10000000000000000000000 }}|{{ 9007199254740993 }}|{{ 0.1 + 0.2 }}|{{ 1e3 }}|{{ 123456789012345678 / 1 }}|{{ 100 | float }}
{{ true + 1 }}|{{ 7.0 // 2 }}|{{ 7.5 % 2 }}|{{ 2 ** 0.5 }}|{{ 2 ** -1 }}
""".strip("\n")


def templates():
    """A template to a line; those with lines of their own go on while a block is open."""
    lines = TEMPLATES.split("\n")
    while lines:
        template = lines.pop(0)
        while template.startswith("{%- for") and not template.endswith("{%- endfor %}"):
            template += "\n" + lines.pop(0)
        yield template


rows = []
for template in templates():
    try:
        text = _compile_jinja_template(template).render(messages=[], **VARIABLES)
    except Exception as error:  # noqa: BLE001
        print(template, "->", type(error).__name__, error)
        text = None
    rows.append({"template": template, "text": text})
with open(sys.argv[1], "w", encoding="utf-8") as file:
    file.write(json.dumps({"variables": VARIABLES, "rows": rows}, ensure_ascii=False, indent=1) + "\n")
print(len(rows))
