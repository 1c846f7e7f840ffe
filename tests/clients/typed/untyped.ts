// No documented answer of any service is unknown, any, or without a body.

import type { paths as Feedback } from "./feedback_api.js";
import type { paths as Inference } from "./inference_api.js";
import type { paths as Rollout } from "./rollout_api.js";

type UntypedAnswer<Answer, Name> = Answer extends { content: infer Content }
  ? unknown extends Content[keyof Content]
    ? Name
    : never
  : Name;

type Untyped<Paths> = {
  [Path in keyof Paths]: {
    [Method in keyof Paths[Path]]-?: Paths[Path][Method] extends { responses: infer Answers }
      ? {
          [Status in keyof Answers]-?: UntypedAnswer<
            Answers[Status],
            `${Method & string} ${Path & string} ${Status & number}`
          >;
        }[keyof Answers]
      : never;
  }[keyof Paths[Path]];
}[keyof Paths];

type Found = Untyped<Feedback> | Untyped<Inference> | Untyped<Rollout>;
export const none: [Found] extends [never] ? true : Found = true;

// The check finds what it is to find.
type Planted = {
  "/a": {
    get: {
      responses: {
        200: { content: { "application/json": unknown } };
        201: { content: { "application/json": any } };
        204: { content?: never };
        404: { content: { "application/json": { code: string } } };
      };
    };
  };
};
type Seen = Untyped<Planted>;
export const planted: Record<Seen, true> = {
  "get /a 200": true,
  "get /a 201": true,
  "get /a 204": true,
};
