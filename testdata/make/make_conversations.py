"""Prompts of the released LFM2.5-VL template and tokenizer, as transformers renders them.

    python make_conversations.py LFM_MODELS ../prompts/released.json

LFM_MODELS is the folder `models` of the crate `lfm` 0.6.1, which carries the released tokenizer
and template. `{date}` stands for today's date. The files themselves are not copied.
"""

import datetime
import itertools
import json
import sys

from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
image = {"type": "image"}
text = lambda t: {"type": "text", "text": t}
user = lambda content: {"role": "user", "content": content}
assistant = lambda content, **more: {"role": "assistant", "content": content, **more}
system = lambda content: {"role": "system", "content": content}
call = lambda name, **arguments: {"type": "function", "function": {"name": name, "arguments": arguments}}
tool = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look <closely> at 'this' & \"that\" é 日本",
        "parameters": {"type": "object", "properties": {"n": {"type": "number", "default": 1.5}, "on": {"type": "boolean", "default": True}, "x": {"default": None}}},
    },
}
conversations = [
    [user("Hi")],
    [user("")],
    [user([])],
    [user([text("")])],
    [user("  spaces \n and lines \n\n")],
    [user("Grüße, 日本語, 🦀👩‍👩‍👧, ﷽, \u200b, \t tabs")],
    [user("<b>bold</b> & \"quotes\" 'single' {{ braces }} {% tags %}")],
    [user("<|im_end|> typed by hand <|im_start|>")],
    [system("Be brief."), user("Hi")],
    [system([text("Be "), text("brief.")]), user("Hi")],
    [system(""), user("Hi")],
    [system("Only a system turn.")],
    [user([image, text("What is this?")])],
    [user([text("Before "), image, text(" after")])],
    [user([image, image, text("Compare.")])],
    [system("S"), user([image, text("One")]), assistant("A cat."), user([image, text("Two"), image])],
    [user("Hi"), assistant("Hello!"), user("Bye"), assistant("Goodbye."), user("Again")],
    [user("Hi"), assistant([text("Hello"), text(" there")]), user("Bye")],
    [user("Hi"), assistant("<think>Greeting.</think>Hello!"), user("Bye")],
    [user("Hi"), assistant("<think>a</think>b</think>  c \n"), user("Bye"), assistant("<think>d</think> e")],
    [user("Hi"), assistant("Hello!", thinking="A greeting."), user("Bye")],
    [user("Hi"), assistant("Hello!", thinking="A greeting.")],
    [user("Hi"), assistant("Hello!", reasoning_content="A greeting.")],
    [user("Hi"), assistant("", tool_calls=[call("f")]), {"role": "tool", "content": "3"}],
    [user("Hi"), {"role": "assistant", "tool_calls": [call("f", a="x", b=2, c=None, d=True, e=1.5, g=[1, "y", None], h={"k": ["<", 2]})]}],
    [user("Hi"), assistant("Calling.", tool_calls=[call("f", q="it's \"so\""), call("g", é="ü")]), {"role": "tool", "content": [text("3")]}, assistant("Three.")],
    [user("Hi"), assistant("", tool_calls=[call("f", big=10**15, small=1e-7, neg=-0.5, exp=1e20, one=1.0)])],
    [user([{"type": "other", "value": [1, None, "x"]}])],
    [{"role": "tool", "content": "lonely"}],
    [assistant("First word."), user("Then me.")],
]
cases = [(c, {"add_generation_prompt": g}) for c, g in itertools.product(conversations, (True, False))]
cases += [(c, {"add_generation_prompt": True, "tools": t}) for c in (conversations[0], conversations[8], conversations[15]) for t in ([tool], [tool, {"name": "bare"}])]
cases += [
    ([user("Hi"), assistant("The answer is")], {"continue_final_message": True}),
    ([user("Hi"), assistant("It ends with a space ")], {"continue_final_message": True}),
    ([user("Hi"), assistant([text("One "), text("two")])], {"continue_final_message": True}),
    ([user("Hi"), assistant("<think>hm")], {"continue_final_message": True}),
]

today = datetime.date.today().isoformat()
rows = []
for messages, options in cases:
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    row = {"messages": messages, **options, "text": prompt.replace(today, "{date}")}
    if today not in prompt:
        row["ids"] = ids
    rows.append(row)
with open(sys.argv[2], "w", encoding="utf-8") as file:
    file.write("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")
print(len(rows))
