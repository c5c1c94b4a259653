// Hands a text that came from the server to the browser as a file; the server keeps none.
export function mount(element, props, watch) {
  watch("value", () => {
    const file = props.value && JSON.parse(props.value);
    if (!file) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([file.text], { type: file.type }));
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  });
}
