// Puts a command into the clipboard, or selects it where the browser refuses that.
for (const button of document.querySelectorAll("button")) {
  const command = button.parentElement.querySelector("code");
  button.hidden = false;
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(command);
    }
  };
}
