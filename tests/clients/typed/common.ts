// What the suites share: settings, checks, and waiting until something holds.

declare const process: { env: Record<string, string | undefined> };

export function setting(name: string): string {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set`);
  return value;
}

export function check(holds: unknown, said: string, seen?: unknown): asserts holds {
  if (!holds) throw new Error(`${said}: ${JSON.stringify(seen)}`);
}

export function headers(key: string): { authorization: string } {
  return { authorization: `Bearer ${setting(key)}` };
}

export async function until<T>(said: string, look: () => Promise<T | undefined>): Promise<T> {
  const end = Date.now() + 90_000;
  for (;;) {
    const found = await look();
    if (found !== undefined) return found;
    if (Date.now() > end) throw new Error(`not in 90 s: ${said}`);
    await new Promise((go) => setTimeout(go, 200));
  }
}
